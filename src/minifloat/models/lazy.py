"""Models larger than memory: blocks stay in their files until the walk works on them.

A model is built without weights; what lies outside its blocks is loaded, and a block comes when it is
needed and goes when it is done.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.memory import give_back
from minifloat.models.adapter import Adapter
from minifloat.models.classes import auto_class
from minifloat.models.experts import open_planned
from minifloat.models.families import adapter_for
from minifloat.models.hub_experts import own_places
from minifloat.plan import Plan
from minifloat.shards import DTYPES, Place, entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Lazy:
    """The weights of a model that has none yet.

    Args:
        model: built on the meta device.
        blocks: by name, as its adapter gives them.
        found: where each of its tensors lies.

    Raises:
        UserError: a tensor of the model is in no file.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        found: Mapping[str, Place],
    ) -> None:
        self._model, self._blocks, self._found = model, blocks, found
        missing = [name for name in _own(model) if name not in found]
        if missing:
            raise UserError(
                f"{len(missing)} tensors are in no file under their own names, among them "
                f"{missing[0]!r}, so the model cannot be loaded block by block"
            )
        kept = model.state_dict(keep_vars=True)
        for name in _own(model):
            if any(name.startswith(f"{block}.") for block in blocks):
                self._set(name, _empty(kept[name], found[name]))
            else:
                self._set(name, found[name].read())
        tie = getattr(model, "tie_weights", None)
        if callable(tie):
            tie()

    def bring(self, block: str) -> None:
        """Load a block's weights, unless they are there."""
        module = self._model.get_submodule(block)
        for name, parameter in module.named_parameters():
            if parameter.is_meta:
                self._set(f"{block}.{name}", self._found[f"{block}.{name}"].read())

    def release(self, block: str) -> None:
        """Let a block's tensors go; what it was changed to must be kept elsewhere."""
        module = self._model.get_submodule(block)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name in module.state_dict():
                owner, _, own = name.rpartition(".")
                _replace(module.get_submodule(owner), own, tensor.to("meta"))
        give_back()

    @contextmanager
    def coming_and_going(self) -> Iterator[nn.Module]:
        """The model, of which each block is loaded when it is called and let go afterwards."""
        handles = []
        for name, block in self._blocks.items():
            handles += [
                block.register_forward_pre_hook(lambda *_, name=name: self.bring(name)),
                block.register_forward_hook(lambda *_, name=name: self.release(name)),
            ]
        try:
            yield self._model
        finally:
            for handle in handles:
                handle.remove()

    def stamp(self) -> list[list[Any]]:
        """Tells the files from others and from later ones of the same names."""
        files = {entry.file for entry in self._found.values()}
        return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(files)]

    def bytes_outside(self) -> int:
        """Of the tensors that are always in memory."""
        inside = sum(self.bytes_of(block) for block in self._blocks)
        return sum(self._found[name].bytes for name in _own(self._model)) - inside

    def bytes_of(self, block: str) -> int:
        """Of a block's tensors."""
        names = (name for name in _own(self._model) if name.startswith(f"{block}."))
        return sum(self._found[name].bytes for name in names)

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, _, own = name.rpartition(".")
        _replace(self._model.get_submodule(owner), own, tensor)


def _own(model: nn.Module) -> list[str]:
    """Names of the tensors that a model keeps in its files, tied ones once."""
    kept = model.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    for name, tensor in kept.items():
        seen.setdefault(id(tensor), name)
    return list(seen.values())


def _empty(tensor: Tensor, place: Place) -> Tensor:
    """A stand-in without memory, of the dtype that the file has: the model was built of another."""
    return torch.empty(tensor.shape, dtype=DTYPES[place.dtype], device="meta")


def _replace(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[name] = tensor


def load_lazily(
    source: str,
    adapter_of: Callable[[nn.Module], Adapter] = adapter_for,
    plan: Plan | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, Lazy]":
    """The model of a local folder, without the weights of its adapter's blocks; its tokenizer.

    Fused experts of which a plan quantizes a layer are opened.

    Raises:
        UserError: no folder with safetensors, or names that are not the model's.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(source).expanduser()
    found = entries(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = auto_class(config).from_config(config, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load the model in {source!r} ({error})") from error
    model.tie_weights()
    if plan is not None:
        open_planned(model, plan)
    places = own_places(model, found, config.model_type)
    return model.eval(), tokenizer, Lazy(model, adapter_of(model).blocks(model), places)
