"""What images are asked for: prompts in words, ready embeddings, class labels or nothing but noise."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minifloat.errors import UserError


@dataclass(frozen=True)
class Prompts:
    """One row an image.

    Attributes:
        captions: words to show beside each.
        values: arguments of the pipeline by keyword: lists or tensors [images, ...].
    """

    captions: list[str]
    values: dict[str, Any]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, start: int, stop: int) -> "Prompts":
        """The images from `start` to before `stop`."""
        part = {name: value[start:stop] for name, value in self.values.items()}
        return Prompts(self.captions[start:stop], part)

    def spread(self, count: int) -> "Prompts":
        """`count` images at equal distances, or all: each part of a sorted file is seen."""
        count = min(count, len(self))
        return self._at([n * len(self) // count for n in range(count)])

    def cycled(self, count: int) -> "Prompts":
        """`count` images, from the first prompt again after the last: each has noise of its own."""
        return self._at([n % len(self) for n in range(count)])

    def _at(self, places: list[int]) -> "Prompts":
        part = {
            name: [value[i] for i in places] if isinstance(value, list) else value[places]
            for name, value in self.values.items()
        }
        return Prompts([self.captions[i] for i in places], part)


def read_prompts(path: Path) -> Prompts:
    """Prompts of a file: UTF-8 text, one a line, or .safetensors with embeddings.

    Embeddings bear the names of the pipeline's arguments (`prompt_embeds`, `negative_prompt_embeds`,
    `prompt_attention_mask` ...), with one row a prompt or one row for all; `captions` in the file's
    metadata is a JSON list of words to show.
    """
    return _embeddings(path) if path.suffix == ".safetensors" else _words(path)


def packaged() -> Prompts:
    """The prompts that come with minifloat."""
    with resources.as_file(resources.files("minifloat") / "data" / "prompts.txt") as path:
        return read_prompts(path)


def _words(path: Path) -> Prompts:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{str(path)!r} has no prompts: it takes one a line")
    return Prompts(lines, {"prompt": lines})


def _embeddings(path: Path) -> Prompts:
    try:
        with safe_open(path, framework="pt") as file:
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            captions = json.loads((file.metadata() or {}).get("captions", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read the embeddings in {str(path)!r} ({error})") from error
    if "prompt_embeds" not in values:
        raise UserError(f"{str(path)!r} has no tensor prompt_embeds, only {', '.join(values)}")
    count = len(values["prompt_embeds"])
    for name, value in values.items():
        if len(value) not in (1, count):
            raise UserError(f"{name} in {str(path)!r} has {len(value)} rows and not {count} or 1")
        values[name] = value.float() if value.is_floating_point() else value
        values[name] = values[name].expand(count, *value.shape[1:])
    if not isinstance(captions, list) or len(captions) != count:
        captions = [f"prompt {i + 1}" for i in range(count)]
    return Prompts(captions, values)
