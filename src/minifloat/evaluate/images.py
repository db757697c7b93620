"""How far a quantized pipeline's images lie from the full-precision ones of the same noise.

Paired measures need no feature network and no real images: they see every change, harmless ones too.
Measures of sets see what changes the set, through the eyes of a network (`eyes.py`).
The reference is the model that was quantized, as Chen et al. 2024 (arXiv 2408.06995) argue.
"""

from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.evaluate.bootstrap import Interval, of_mean
from minifloat.evaluate.eyes import Seen
from minifloat.evaluate.frechet import frechet, frechet_change, spatial
from minifloat.evaluate.manifold import precision_recall
from minifloat.evaluate.perceptual import perceptual


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
    """The report's rows that need pixels alone: means over images with their intervals."""
    measures = {"PSNR to full precision, dB": psnr, "SSIM to full precision": ssim}
    return [_row(name, of_mean(each(images, references))) for name, each in measures.items()]


def compare_seen(seen: Seen, references: Seen, real: Seen | None = None) -> list[dict[str, Any]]:
    """The rows that a feature network gives.

    Args:
        seen: a quantized pipeline's images.
        references: full precision's, of the same prompts and noise.
        real: pictures that nobody generated.

    Distances of two Gaussians want twice as many images as features; with fewer they are left out.
    """
    before, after = references.features, seen.features
    rows = [_row("perceptual distance", of_mean(perceptual(seen.maps, references.maps)))]
    near = precision_recall(after, before)
    rows += [_row(f"{k} to full precision", v) for k, v in near._asdict().items()]
    if _enough(after):
        rows.append(_row("Frechet distance to full precision", frechet(after, before)))
    flat = [spatial(one.maps[0], _channels(seen.maps[0])) for one in (seen, references)]
    if _enough(flat[0]):
        rows.append(_row("spatial Frechet distance to full precision", frechet(*flat)))
    if real is None:
        return rows
    for name, value in precision_recall(after, real.features)._asdict().items():
        own = getattr(precision_recall(before, real.features), name)
        rows.append(_row(f"{name} to real pictures", value, own))
    if _enough(after):
        change = frechet_change(after, before, real.features)
        own = frechet(before, real.features)
        rows.append(_row("Frechet distance to real pictures", own + change.value, own))
        rows.append(_row("its change", change))
    return rows


def compare_match(before: Tensor, after: Tensor) -> list[dict[str, Any]]:
    """How well images [n] fit their prompts, full precision's and the quantized model's, in pairs."""
    rows = [_row("prompt match", float(after.mean()), float(before.mean()))]
    return [*rows, _row("change of prompt match", of_mean(after - before))]


def _row(name: str, found: float | Interval, full_precision: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "full_precision": full_precision}
    if isinstance(found, Interval):
        return row | {"quantized": found.value, "quantized_interval": [found.low, found.high]}
    return row | {"quantized": found}


def _enough(features: Tensor) -> bool:
    return len(features) >= 2 * features.shape[1]


def _channels(maps: Tensor) -> int:
    """As many channels as leave two images a feature, at most 8."""
    return max(1, min(8, len(maps) // (2 * maps.shape[2])))


def collapsed(references: Tensor, images: Tensor) -> bool:
    """Whether images are no nearer to their own references than to other prompts' and noises'."""
    if not torch.isfinite(images).all():
        return True
    own = (images - references).square().mean()
    other = (images - references.roll(1, 0)).square().mean()
    return bool(own >= other) and len(images) > 1
