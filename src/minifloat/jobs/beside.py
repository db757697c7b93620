"""Quantized pipelines beside each other and their full-precision model: the same prompts and noise."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.evaluate.eyes import Eyes, Seen
from minifloat.evaluate.images import compare_images, compare_match, compare_seen
from minifloat.evaluate.steps import Trajectory
from minifloat.jobs.images import JUDGED, judged_images
from minifloat.layers import weights_held
from minifloat.models.pipeline import denoiser, is_pipeline, open_pipeline, requests, sample
from minifloat.models.prompts import Prompts, packaged, read_prompts
from minifloat.models.zoo import resolve
from minifloat.pictures import write_rows

_TYPES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Beside:
    """What is compared, and how.

    Attributes:
        against: the full-precision pipeline.
        folders: quantized ones.
        images: of how many prompts.
        steps, guidance: of the sampler.
        data: prompts; None for those of the pipeline's folder, else of the package.
        features: a vision model that looks at the images; None to compare pixels alone.
        real: a folder of pictures that nobody generated, for that model to look at too.
    """

    against: str
    folders: list[str]
    images: int = 16
    steps: int = 20
    guidance: float | None = None
    data: Path | None = None
    features: str | None = None
    real: Path | None = None


@dataclass(frozen=True)
class _Reference:
    """Full precision's images and all that others are compared with."""

    images: Tensor
    trajectory: Trajectory
    eyes: Eyes | None
    seen: Seen | None
    real: Seen | None
    match: Tensor | None  # with the captions, where the eyes can read
    captions: list[str]

    def rows(self, images: Tensor) -> list[dict[str, Any]]:
        """The metrics of a quantized pipeline's images."""
        rows = compare_images(self.images, images)
        if self.eyes is None or self.seen is None:
            return rows
        rows += compare_seen(self.eyes.see(images), self.seen, self.real)
        after = None if self.match is None else self.eyes.match(images, self.captions)
        return rows + (
            [] if self.match is None or after is None else compare_match(self.match, after)
        )


def compare_pipelines(asked: Beside, out: Path) -> dict[str, Any]:
    """Sample all of them, one in memory at a time; write strips of images into `out`.

    Returns:
        "models": one entry a folder with its metrics, error by step, size and share of zeros;
        "pictures": files and captions; "settings".
    """
    for folder in (asked.against, *asked.folders):
        if not is_pipeline(resolve(folder)):
            raise UserError(f"{folder!r} is no pipeline of diffusers: it has no model_index.json")
    reference, prompts = _full_precision(asked)
    columns, models = [reference.images], []
    for folder in asked.folders:
        pipe = open_pipeline(resolve(folder))
        _, network = denoiser(pipe)
        with weights_held(network):
            images = _sample(asked, pipe, prompts)
            steps = reference.trajectory.sqnr(network)
        columns.append(images)
        about = {"name": Path(folder).name, "metrics": reference.rows(images), "step_sqnr": steps}
        models.append(about | _noted(Path(folder)))
    return {
        "model": asked.against,
        "models": models,
        "pictures": write_rows(columns, prompts.captions, out),
        "settings": {
            "images": len(prompts),
            "sampler steps": asked.steps,
            "guidance": asked.guidance,
            "features": asked.features,
        },
    }


def _full_precision(asked: Beside) -> tuple[_Reference, Prompts]:
    eyes = None if asked.features is None else Eyes(asked.features)
    pipe = open_pipeline(resolve(asked.against))
    prompts = _prompts(asked, pipe)
    images, trajectory = judged_images(
        denoiser(pipe)[1], prompts, lambda some, seed: _sample(asked, pipe, some, seed)
    )
    seen = real = match = None
    if eyes is not None:
        seen, match = eyes.see(images), eyes.match(images, prompts.captions)
        if asked.real is not None:
            real = eyes.see(_pictures(asked.real, images.shape[-2:]))
    return _Reference(images, trajectory, eyes, seen, real, match, prompts.captions), prompts


def _sample(asked: Beside, pipe: Any, prompts: Prompts, seed: int = JUDGED) -> Tensor:
    return sample(pipe, prompts, seed=seed, steps=asked.steps, guidance=asked.guidance)


def _prompts(asked: Beside, pipe: Any) -> Prompts:
    """Those of a file, the pipeline's own held-out ones, or the package's last, not calibrated on."""
    own = Path(resolve(asked.against)) / "heldout.safetensors"
    if asked.data is not None:
        prompts = read_prompts(asked.data)
    elif own.is_file():
        prompts = read_prompts(own).spread(asked.images)
    else:
        every = packaged()
        prompts = every.rows(max(0, len(every) - asked.images), len(every))
    return requests(pipe, prompts, min(asked.images, len(prompts)), JUDGED)


def _pictures(folder: Path, size: tuple[int, ...]) -> Tensor:
    """All pictures of a folder [n, 3, height, width] in 0..1, at the size of the images."""
    from PIL import Image

    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in _TYPES)
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(_TYPES)})")
    height, width = size
    found = []
    for path in files:
        try:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        except OSError as error:
            raise UserError(f"cannot read the picture {path}: {error}") from error
        levels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        found.append(levels.view(height, width, 3).movedim(-1, 0) / 255)
    return torch.stack(found)


def _noted(folder: Path) -> dict[str, Any]:
    """What the run that made a checkpoint wrote down: its method, size and zeros."""
    path = folder / "report.json"
    if not path.is_file():  # saved from Python
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    return {key: report.get(key) for key in ("method", "size", "zeros")}
