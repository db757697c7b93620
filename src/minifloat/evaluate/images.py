"""How far a quantized pipeline's images lie from the full-precision ones of the same noise.

Paired measures need no feature network and no real images: they see every change, harmless ones too.
The reference is the model that was quantized, as Chen et al. 2024 (arXiv 2408.06995) argue.
"""

from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [n] in dB of images [n, c, h, w] in 0..1; equal ones give infinity."""
    return -10 * torch.log10((images - references).square().mean((1, 2, 3)))


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity [n] (Wang et al. 2004: Gaussian window of 11 pixels)."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as measure
    except ImportError as error:
        raise UserError("SSIM needs torchmetrics; pip install 'minifloat[diffusion]'") from error
    found: Tensor = measure(images, references, data_range=1.0, reduction="none")  # type: ignore[assignment]
    return found.reshape(-1)


def compare_images(references: Tensor, images: Tensor) -> list[dict[str, Any]]:
    """The report's rows: means over images, with one standard error."""
    measures = {"PSNR to full precision, dB": psnr, "SSIM to full precision": ssim}
    rows: list[dict[str, Any]] = []
    for name, measure in measures.items():
        each = measure(images, references).double()
        error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else None
        rows.append({"name": name, "quantized": float(each.mean()), "quantized_error": error})
    return rows


def collapsed(references: Tensor, images: Tensor) -> bool:
    """Whether images are no nearer to their own references than to other prompts' and noises'."""
    if not torch.isfinite(images).all():
        return True
    own = (images - references).square().mean()
    other = (images - references.roll(1, 0)).square().mean()
    return bool(own >= other) and len(images) > 1
