"""Our own checkpoint: a folder of transformers or diffusers whose safetensors hold packed layers.

config.json gains `quantization_config` with the plan and the packed layers' names and shapes. The
folder is written under a temporary name beside its place and renamed when it is whole, so a kill or
a full disk leaves nothing under the final name.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor, nn

from minifloat.embedding import TiedHead
from minifloat.errors import UserError
from minifloat.export.stored import FORMAT_VERSION, Stored
from minifloat.layers import QLayer
from minifloat.models.experts import ExpertLayers
from minifloat.models.split import SplitLayer
from minifloat.plan import Plan
from minifloat.shards import Entry, write

QUANT_METHOD = "minifloat"
_SHARD = "4GB"


def quantization_config(model: nn.Module, plan: Plan) -> dict[str, Any]:
    """What a loader needs: the plan, and what is stored of every packed layer."""
    packed = [(name, m) for name, m in model.named_modules() if isinstance(m, QLayer)]
    config = configuration(plan, {name: Stored.of(layer) for name, layer in packed})
    splits = {n: m.sizes for n, m in model.named_modules() if isinstance(m, SplitLayer)}
    experts = [n for n, m in model.named_modules() if isinstance(m, ExpertLayers)]
    tables = {module: name for name, module in model.named_modules()}
    tied = {n: tables[m.table] for n, m in model.named_modules() if isinstance(m, TiedHead)}
    changed = {"splits": splits, "experts": experts, "tied": tied}
    return config | {key: value for key, value in changed.items() if value}


def configuration(plan: Plan, layers: dict[str, Stored]) -> dict[str, Any]:
    """`quantization_config` in the present version."""
    return {
        "quant_method": QUANT_METHOD,
        "format_version": FORMAT_VERSION,
        **plan.to_json(),
        "layers": {name: stored.to_json() for name, stored in layers.items()},
    }


def stem_of(config: dict[str, Any]) -> str:
    """How the names of the files begin in which diffusers and transformers look for weights."""
    return "diffusion_pytorch_model" if "_class_name" in config else "model"


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its final name only if the block ends without an error.

    Raises:
        UserError: the final name is taken by something that is not a checkpoint of ours, or the
            disk is full.
    """
    if folder.exists() and not _replaceable(folder):
        raise UserError(f"{folder} exists and is not a minifloat checkpoint; name another folder")
    for left in folder.parent.glob(f".{escape(folder.name)}.????????.partial"):
        shutil.rmtree(left, ignore_errors=True)  # of a run into this folder that was killed
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """Whether a folder is empty or was written by us."""
    if not folder.is_dir():
        return False
    ours = ("report.json", "export.json")
    return not any(folder.iterdir()) or any((folder / name).is_file() for name in ours)


def save(
    model: nn.Module, plan: Plan, folder: Path, elsewhere: Mapping[str, Entry] | None = None
) -> int:
    """Write config and tensors of a quantized model of transformers or diffusers.

    Tensors that the model does not hold any more are read from `elsewhere`, one at a time.
    Returns the tensors' bytes.
    """
    stem = "model"
    if isinstance(model.config, dict):  # of diffusers
        config = json.loads(model.to_json_string())  # type: ignore[operator]
        stem = "diffusion_pytorch_model"
    else:
        config = model.config.to_dict()  # type: ignore[operator,union-attr]
        config["architectures"] = [type(model).__name__]
    config["quantization_config"] = quantization_config(model, plan)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(str(folder))
    state = _untied(model)
    if elsewhere is not None:
        held = {name: tensor for name, tensor in state.items() if not tensor.is_meta}
        rest = (entry for entry in elsewhere.items() if entry[0] not in held)
        tensors = chain(held.items(), ((name, entry.read()) for name, entry in rest))
        return sum(write(folder, tensors, stem=stem).values())
    _write_state(state, folder, f"{stem}{{suffix}}.safetensors")
    return sum(t.numel() * t.element_size() for t in state.values())


def _write_state(state: dict[str, Tensor], folder: Path, pattern: str) -> None:
    from huggingface_hub import save_torch_state_dict

    try:
        save_torch_state_dict(state, str(folder), filename_pattern=pattern, max_shard_size=_SHARD)
    except OSError:
        raise
    except Exception as error:  # safetensors reports a full disk as its own error type
        if "No space" in str(error) or "os error" in str(error):
            raise OSError(28, str(error)) from error
        raise


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state without second names of one tensor (tied embeddings), which the model re-ties."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and not tensor.is_meta and key in seen:
            continue
        seen.add(key)
        state[name] = tensor.contiguous()
    return state
