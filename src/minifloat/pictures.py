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
    from PIL import Image

    (folder / "images").mkdir()
    figures = []
    agreement = psnr(images, references).tolist()
    for i, (before, after) in enumerate(zip(references[:SHOWN], images, strict=False)):
        difference = (0.5 + GAIN * (after - before)).clamp(0, 1)
        strip = torch.cat([before, after, difference], -1)
        pixels = (255 * strip).round().byte().movedim(0, -1).squeeze(-1).numpy()
        path = f"images/{i:02d}-{_slug(captions[i])}.png"
        Image.fromarray(pixels).save(folder / path)
        figures.append({"file": path, "caption": captions[i], "psnr": agreement[i]})
    return figures


def _slug(caption: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:40] or "image"
