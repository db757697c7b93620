"""A model of any checkpoint that is read here, its quantized layers packed and run by our kernels."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from minifloat.export.native import QUANT_METHOD
from minifloat.export.read import read_folder
from minifloat.models.load import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    source: str, *, weights_only: bool = False, dtype: str = "auto"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The language model and tokenizer of a folder, a hub name or a GGUF file.

    Checkpoints of other contracts and GGUF files are imported into a temporary folder, which takes as
    much room as they do; `minifloat import` keeps it.

    Args:
        source: folder, hub name or file.
        weights_only: leave the inputs of other contracts' layers in full precision.
        dtype: as `load_model` takes it.

    Raises:
        UserError: it cannot be read, or holds layers that ours cannot.
    """
    if not _is_foreign(Path(source).expanduser()):
        return load_model(source, dtype=dtype)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "imported"
        read_folder(Path(source).expanduser(), folder, weights_only=weights_only)
        return load_model(str(folder), dtype=dtype)


def _is_foreign(path: Path) -> bool:
    """Whether a local checkpoint is quantized by another contract."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        config = json.loads((path / "config.json").read_text())
        method = (config.get("quantization_config") or {}).get("quant_method", QUANT_METHOD)
    except (OSError, ValueError, AttributeError):
        return (path / "model.gguf").is_file()
    return bool(method != QUANT_METHOD)
