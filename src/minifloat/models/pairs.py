"""Pictures with their words, as vision-language models are calibrated and judged on them.

A folder holds the pictures and `metadata.jsonl`, one object a line: {"file_name": "cat.png", "text": "A
cat on a mat."}. It is the form of datasets' ImageFolder, so folders made for it serve.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from minifloat.errors import UserError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

INDEX = "metadata.jsonl"


@dataclass(frozen=True)
class Pair:
    """A picture's file and what is said of it."""

    picture: Path
    text: str


def is_pairs(data: Path | None) -> bool:
    """Whether calibration data are pictures with words: a folder, or its index."""
    return data is not None and (data.is_dir() or data.suffix == ".jsonl")


def read_pairs(data: Path) -> list[Pair]:
    """The pairs of a folder, or of its index.

    Raises:
        UserError: no index, a line of another form, or a picture that is not there.
    """
    index = data / INDEX if data.is_dir() else data
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read {index}: pictures need this file, with a line "
            '{"file_name": ..., "text": ...} for each'
        ) from error
    pairs = [_pair(index, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise UserError(f"{index} names no pictures")
    return pairs


def _pair(index: Path, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
        name, text = row["file_name"], row["text"]
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'line {number} of {index} is not {{"file_name": ..., "text": ...}}'
        ) from error
    picture = index.parent / name
    if not picture.is_file():
        raise UserError(f"line {number} of {index} names {name!r}, but there is no such file")
    return Pair(picture, text)


def digest(pairs: Sequence[Pair]) -> str:
    """Tells sets of pairs apart by their words and their pictures' bytes."""
    total = hashlib.sha256()
    for pair in pairs:
        total.update(hashlib.sha256(pair.picture.read_bytes()).digest())
        total.update(hashlib.sha256(pair.text.encode()).digest())
    return total.hexdigest()


def load_processor(source: str) -> "ProcessorMixin":
    """The processor of a folder or a hub name, which turns pairs into a model's arguments.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # as manifold as those of loading a model
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the processor in {source!r} ({first})") from error
    if not hasattr(processor, "image_processor"):
        raise UserError(
            f"{source!r} has no image processor, so pictures cannot calibrate it; give text"
        )
    return processor


def encode(processor: Any, pair: Pair, like: Tensor) -> dict[str, Tensor]:
    """A model's arguments for one pair, a batch of one, on the device and in the type of `like`.

    The words are the answer to the picture, in the form of the processor's chat template if it has
    one.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("pictures need Pillow; pip install pillow") from error
    try:
        with Image.open(pair.picture) as file:
            picture = file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the picture {pair.picture} ({error})") from error
    words = _words(processor, pair.text)
    inputs = processor(images=picture, text=words, return_tensors="pt").to(like.device, like.dtype)
    return {key: value for key, value in inputs.items() if isinstance(value, Tensor)}


def _words(processor: Any, text: str) -> str:
    token = getattr(processor, "image_token", None)
    if isinstance(token, str) and token in text:
        raise UserError(
            f"the text {text[:60]!r} holds {token}: leave it out, the picture comes before the words"
        )
    if getattr(processor, "chat_template", None):
        picture, answer = {"type": "image"}, {"type": "text", "text": text}
        turns = [
            {"role": "user", "content": [picture]},
            {"role": "assistant", "content": [answer]},
        ]
        return str(processor.apply_chat_template(turns, tokenize=False))
    if not isinstance(token, str):
        raise UserError(f"{type(processor).__name__} has no token that stands for a picture")
    return f"{token}\n{text}"
