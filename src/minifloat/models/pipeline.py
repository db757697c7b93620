"""Pipelines of diffusers: opened without code of theirs, and asked for images of given prompts.

The noise of every image has a seed of its own, so an image is the same whatever batch it is in, and a
quantized pipeline can be judged image by image.
"""

import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.models.prompts import Prompts

INDEX = "model_index.json"
BATCH = 4  # images at once
_DENOISERS = ("transformer", "unet")


def is_pipeline(source: str) -> bool:
    """Whether a folder, or a name on the hub, is a pipeline and not one model."""
    folder = Path(source).expanduser()
    if folder.exists() or source.count("/") != 1:
        return (folder / INDEX).is_file()
    try:
        from huggingface_hub import file_exists

        return bool(file_exists(source, INDEX))
    except (ImportError, OSError, ValueError):
        return False  # the loader of models will say what is wrong


def open_pipeline(
    source: str, device: str = "cpu", ready: Mapping[str, nn.Module] | None = None
) -> Any:
    """The `DiffusionPipeline` in a folder or on the hub, from safetensors alone.

    Components that its index leaves empty stay empty: a model of pixels has no VAE, and embeddings
    that are ready need no text encoder. Those that are `ready` are taken as they are and stay where
    they are.
    """
    try:
        import diffusers
    except ImportError as error:
        raise UserError("pipelines need diffusers; pip install 'minifloat[diffusion]'") from error
    folder = Path(source).expanduser()
    diffusers.utils.logging.disable_progress_bar()
    try:
        empty = _empty_components(folder / INDEX) if folder.is_dir() else {}
        opener: Any = diffusers.DiffusionPipeline
        given = empty | dict(ready or {})
        pipe = opener.from_pretrained(source, use_safetensors=True, **given)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot load the pipeline in {source!r} ({first})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe if ready else pipe.to(device)


def denoiser_class(folder: Path) -> tuple[str, Any]:
    """The network that a pipeline's folder says its sampler calls: its name and its class."""
    import diffusers

    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for name in _DENOISERS:
            if name in index:
                library, cls = index[name]
                if library == "diffusers" and isinstance(getattr(diffusers, cls, None), type):
                    return name, getattr(diffusers, cls)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / INDEX} is no index of a pipeline ({error})") from error
    raise UserError(f"{folder / INDEX} names no {' or '.join(_DENOISERS)} of diffusers")


def _empty_components(index: Path) -> dict[str, None]:
    entries = json.loads(index.read_text(encoding="utf-8"))
    return {name: None for name, entry in entries.items() if entry == [None, None]}


def denoiser(pipe: Any) -> tuple[str, nn.Module]:
    """The network that the sampler calls, with its name in the pipeline."""
    for name in _DENOISERS:
        found = getattr(pipe, name, None)
        if isinstance(found, nn.Module):
            return name, found
    raise UserError(f"{type(pipe).__name__} has no {' or '.join(_DENOISERS)} to quantize")


def requests(pipe: Any, prompts: Prompts | None, count: int, seed: int) -> Prompts:
    """The first `count` prompts, or random classes or plain noise where the pipeline takes no words."""
    asks = inspect.signature(pipe.__call__).parameters
    if "prompt" in asks:
        return _first(pipe, prompts, count)
    if "class_labels" in asks and (classes := _classes(pipe)):
        drawn = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
        return Prompts([f"class {i}" for i in drawn.tolist()], {"class_labels": drawn.tolist()})
    return Prompts([f"noise {seed + i}" for i in range(count)], {})


def _classes(pipe: Any) -> int:
    """How many classes a denoiser knows: transformers and U-Nets name them differently."""
    config: Any = denoiser(pipe)[1].config
    count: int = config.get("num_embeds_ada_norm") or config.get("num_class_embeds") or 0
    return count


def _first(pipe: Any, prompts: Prompts | None, count: int) -> Prompts:
    name = type(pipe).__name__
    if prompts is None:
        raise UserError(f"{name} needs prompts: give a file with --data, one a line")
    if len(prompts) < count:
        raise UserError(f"{len(prompts)} prompts are too few: {count} are needed")
    if "prompt" in prompts.values and getattr(pipe, "text_encoder", None) is None:
        raise UserError(
            f"this {name} has no text encoder: give embeddings (prompt_embeds ...) in a .safetensors"
        )
    return prompts.rows(0, count)


@torch.no_grad()
def sample(
    pipe: Any,
    prompts: Prompts,
    *,
    seed: int,
    steps: int,
    guidance: float | None,
    batch: int = BATCH,
) -> Tensor:
    """Images [n, channels, height, width] in 0..1, of each row of `prompts`.

    The frames of a clip lie side by side in one image, as on a strip of film.

    Args:
        seed: of the first image's noise; the next image's is one more.
        steps: of the pipeline's own sampler.
        guidance: classifier-free guidance scale; None for the pipeline's default.
        batch: images at once.
    """
    asks = inspect.signature(pipe.__call__).parameters
    fixed: dict[str, Any] = {"num_inference_steps": steps} | _as_trained(pipe, asks)
    if guidance is not None and "guidance_scale" in asks:
        fixed["guidance_scale"] = guidance
    if "negative_prompt_embeds" in prompts.values:
        fixed["negative_prompt"] = None  # some have "" here and then refuse both
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts.rows(start, min(start + batch, len(prompts)))
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(part))]
        call = fixed | part.values | ({"batch_size": len(part)} if "batch_size" in asks else {})
        images.append(_pictures(pipe, call | {"generator": noise}))
    return torch.cat(images)


def _as_trained(pipe: Any, asks: Collection[str]) -> dict[str, Any]:
    """The length and size of clips that a network was trained for; its pipeline's own are others."""
    if "video_length" not in asks:
        return {}
    config: Any = denoiser(pipe)[1].config
    return {"video_length": config.video_length, "height": None, "width": None}


def _pictures(pipe: Any, call: dict[str, Any]) -> Tensor:
    """One call of the pipeline; without a VAE the latents, in -1..1, are the picture."""
    bare = getattr(pipe, "vae", "none needed") is None
    output = pipe(**call, output_type="latent" if bare else "np")
    found = output.get("images", output.get("frames"))
    if found is None:
        raise UserError(f"{type(pipe).__name__} makes neither images nor clips")
    pictures = torch.as_tensor(found).float().cpu()
    pictures = (pictures / 2 + 0.5).clamp(0, 1) if bare else pictures.movedim(-1, 1)
    return pictures if pictures.ndim == 4 else pictures.movedim(2, 3).flatten(3)


def save_others(pipe: Any, but: str, folder: Path) -> None:
    """Write the index and every component except one, which its caller writes."""
    pipe.save_config(str(folder))
    for name, component in pipe.components.items():
        if name != but and hasattr(component, "save_pretrained"):
            component.save_pretrained(str(folder / name))
