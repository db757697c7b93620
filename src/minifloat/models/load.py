"""Models and texts from disk or the hub, without ever running code that came with them."""

import gzip
import importlib.util
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minifloat.errors import UserError, unknown
from minifloat.models.classes import auto_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CHARACTERS = 64  # more than a token of plain text has
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def _dtype(name: str | torch.dtype) -> str | torch.dtype:
    """Check the type by name, where transformers would fail with an attribute error."""
    if isinstance(name, torch.dtype) or name == "auto":
        return name
    known = ("float32", "float16", "bfloat16", "float64")
    if name not in known:
        raise unknown("dtype", name, (*known, "auto"))
    found: torch.dtype = getattr(torch, name)
    return found


def _check_device(device: str) -> None:
    """Find out that a device does not exist before the minutes that loading may take."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} is not available on this machine") from error


def _check_folder(folder: Path) -> None:
    """Name what a folder lacks; transformers would take some of these for a hub name."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{str(folder)!r} has no config.json, so it is not a model's folder")
    if any(folder.glob("*.safetensors")):
        return
    if any(next(folder.glob(pattern), None) for pattern in PICKLED):
        raise UserError(
            f"{str(folder)!r} has only pickled weights; minifloat never unpickles; "
            "convert to safetensors"
        )
    raise UserError(f"{str(folder)!r} has no weights: it needs a .safetensors file")


def _unreadable(source: str, is_hub: bool, error: Exception) -> UserError:
    """The sentence for whatever transformers, safetensors or the hub raised.

    Only errors of reading come here: the caller has already seen what a folder holds.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if is_hub and isinstance(error, OSError):
        return UserError(
            f"could not get {source!r} from the hub: it does not exist, needs a login, has no "
            f"safetensors weights or the hub cannot be reached; a local folder works offline "
            f"({first})"
        )
    if isinstance(error, SafetensorError):
        return UserError(f"the safetensors weights in {source!r} are damaged or cut off ({first})")
    return UserError(f"cannot load the model in {source!r} ({first})")


def _forget_gguf(model: Any) -> None:
    """Make a model read from GGUF an ordinary one again.

    transformers dequantizes the weights but leaves its quantizer on the modules, and
    `save_pretrained` then refuses with "quantized with gguf and is not serializable".
    """
    for module in model.modules():
        if hasattr(module, "hf_quantizer"):
            module.hf_quantizer = None
        config: Any = getattr(module, "config", None)
        if config is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
    model.is_quantized = False
    if hasattr(model, "quantization_method"):
        del model.quantization_method


def locate(source: str) -> tuple[str, dict[str, Any], bool]:
    """Where transformers shall look, its extra arguments, and whether that is the hub."""
    if not source:
        raise UserError("name a model: a folder, a hub name or a .gguf file")
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"there is no file {source!r}")
        for module, extra in (("gguf", "gguf"), ("accelerate", "hf")):
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"GGUF files need the package {module}; pip install 'minifloat[{extra}]'"
                )
        # Absolute, because transformers prefers a file of that name in the current folder.
        return str(path.parent), {"gguf_file": str(path.resolve())}, False
    if path.is_dir():
        _check_folder(path)
        return str(path), {"use_safetensors": True, "local_files_only": True}, False
    if path.is_file():
        raise UserError(f"{source!r} is a file; give the model's folder or a .gguf file")
    if path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise UserError(f"there is no folder {source!r} (a hub name has the form owner/model)")
    return source, {"use_safetensors": True}, True


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' warnings and bars, where what they say is no news."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with _no_progress_bars():
            yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' bars: errors of ours are one line, and loading takes seconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(
    source: str, *, dtype: str | torch.dtype = "auto", device: str = "cpu"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model of a local folder, a hub name or a .gguf file, for text or pictures too; its tokenizer.

    Weights come from safetensors or GGUF only and the model's own Python code is never run:
    a downloaded model is data. `dtype="auto"` keeps the stored type (GGUF: float32).
    """
    kind = _dtype(dtype)
    where, extra, is_hub = locate(source)
    _check_device(device)
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise UserError("models need transformers; pip install 'minifloat[hf]'") from error
    is_gguf = "gguf_file" in extra
    if is_gguf and kind == "auto":
        kind = torch.float32
    try:
        with _no_progress_bars():
            cls: Any = AutoModelForCausalLM
            if not is_gguf:
                known = {"trust_remote_code": False, "local_files_only": not is_hub}
                cls = auto_class(AutoConfig.from_pretrained(where, **known))
            model, report = cls.from_pretrained(
                where, dtype=kind, trust_remote_code=False, output_loading_info=True, **extra
            )
        extra.pop("use_safetensors", None)
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **extra)
    except UserError:
        raise
    except Exception as error:  # transformers has errors of its own for whatever a file may hold
        raise _unreadable(source, is_hub, error) from error
    other = (key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"])
    missing = sorted({*report["missing_keys"], *other})
    if missing:
        # transformers would go on with random weights.
        raise UserError(
            f"the weights in {source!r} are not this model's: {len(missing)} tensors are "
            f"missing or of other shapes, among them {missing[0]!r}"
        )
    if is_gguf:
        _forget_gguf(model)
    return model.to(device).eval(), tokenizer


def _read_text(path: Path, name: str) -> str:
    """The file's text, unpacked if its name ends in .gz."""
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {name!r}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name!r} is not UTF-8 text") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name!r} is not a whole gzip file") from error
    except OSError as error:
        raise UserError(f"cannot read {name!r}: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{name!r} is empty")
    return text


def read_tokens(
    tokenizer: Any,
    path: str | Path | None,
    *,
    default: Literal["calibration", "heldout"] = "calibration",
    limit: int | None = None,
) -> Tensor:
    """Tokens, int64 [T], of a UTF-8 text file (.gz too), or of a text packaged with minifloat.

    With a limit these are the first so many, and the rest of a long text costs no time.

    No special tokens are added: windows are cut from anywhere, and only the first would have one.
    """
    if path is None:
        packaged = resources.files("minifloat") / "data" / f"{default}.txt.gz"
        with resources.as_file(packaged) as file:
            text = _read_text(file, file.name)
        name = packaged.name
    else:
        name = str(path)
        text = _read_text(Path(path).expanduser(), name)
    if limit is not None:
        text = text[: _CHARACTERS * limit]
    # verbose=False: the text is longer than the model's context on purpose.
    numbers = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(numbers) < 2:
        raise UserError(f"{name!r} is too short: it has fewer than 2 tokens")
    return torch.tensor(numbers[:limit], dtype=torch.int64)


def longest(model: nn.Module) -> int | None:
    """How many tokens a model reads at once, if its configuration says so."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):  # a vision-language model's lies deeper
        config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def context(model: nn.Module, length: int) -> int:
    """The length of a window, shortened to what the model can read at once."""
    limit = longest(model)
    return min(length, limit) if limit is not None else length


def sample_windows(tokens: Tensor, count: int, length: int, seed: int) -> Tensor:
    """Random windows of the text, [count, length]; the same seed gives the same windows."""
    if count < 1 or length < 1:
        raise UserError(f"windows need a count ({count}) and a length ({length}) of at least 1")
    if tokens.numel() < length:
        raise UserError(
            f"the text has {tokens.numel()} tokens, fewer than one window of {length}; "
            "give a longer text or a shorter window"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, tokens.numel() - length + 1, (count, 1), generator=generator)
    return tokens[starts.to(tokens.device) + torch.arange(length, device=tokens.device)]
