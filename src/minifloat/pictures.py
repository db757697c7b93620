"""Images for people: strips of full precision, quantized and their difference, as PNG files."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.evaluate.images import psnr

SHOWN = 16
GAIN = 4  # of the difference, around grey


def write_strips(
    references: Tensor, images: Tensor, captions: list[str], folder: Path
) -> list[dict[str, Any]]:
    """Write one PNG an image into `folder`; the report's `pictures`: file, caption, agreement in dB."""
    (folder / "images").mkdir()
    figures = []
    agreement = psnr(images, references).tolist()
    for i, (before, after) in enumerate(zip(references[:SHOWN], images, strict=False)):
        difference = (0.5 + GAIN * (after - before)).clamp(0, 1)
        path = _write([before, after, difference], folder, i, captions[i])
        figures.append({"file": path, "caption": captions[i], "psnr": agreement[i]})
    return figures


def write_rows(columns: list[Tensor], captions: list[str], folder: Path) -> list[dict[str, str]]:
    """Write PNGs with every column's image beside the others, of captions at equal distances."""
    (folder / "images").mkdir(exist_ok=True)
    count = min(SHOWN, len(captions))
    rows = []
    for place in (n * len(captions) // count for n in range(count)):
        path = _write([images[place] for images in columns], folder, place, captions[place])
        rows.append({"file": path, "caption": captions[place]})
    return rows


def _write(images: list[Tensor], folder: Path, number: int, caption: str) -> str:
    """Images [channels, height, width] in 0..1 as a PNG; its path in the folder.

    They lie beside each other; those that are strips themselves, such as frames, one below the other.
    """
    from PIL import Image

    height, width = images[0].shape[-2:]
    sheet = torch.cat(images, -2 if width > 2 * height else -1)
    pixels = (255 * sheet).round().byte().movedim(0, -1).squeeze(-1).numpy()
    path = f"images/{number:02d}-{_slug(caption)}.png"
    Image.fromarray(pixels).save(folder / path)
    return path


def _slug(caption: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:40] or "image"
