"""unet-text-1step: unet-text distilled, so that it draws in one to four steps.

Why this file exists: few-step models have one chance to make good what a quantized layer gets wrong,
and MixDQ (arXiv:2405.17873) is about them. The student is a consistency function (Song et al.,
arXiv:2303.01469): from every point of the teacher's guided path it goes to the end of that path, and
is sampled as latent consistency models are (Luo et al., arXiv:2310.04378). Their target is the student
itself one point further on; here the teacher's paths are walked once and kept, and the target is
their true end, which needs far fewer steps of training. Guidance is part of what is learned, so the
student is sampled without (`guidance=1`).

    python -m zoo.train unet-text-1step --out DIR            train (resumable)
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo import captioned, diffusion, unet_text
from zoo.captioned import TEXT
from zoo.descent import seeded
from zoo.diffusion import Maker, Recipe
from zoo.noising import TIMES, Asked, Batch, Data, as_floats, scheduler

TEACHER = Path(__file__).resolve().parent / "unet-text" / "unet"
GUIDANCE = 2.0  # of the teacher, as its card has it
STEPS = 10  # of the teacher's path
WALKED, HELD = 1024, 64  # paths, of training captions and of held-out ones
TOGETHER = 32  # paths that are walked at once

CPU = Recipe(
    steps=700, peak_rate=4e-4, warmup=30, fall=0.6, average=0.98, wordless=0.0, low=True,
    validate_every=175, checkpoint_seconds=120.0,
)  # fmt: skip


def build() -> UNet2DConditionModel:
    """A copy of the teacher in fp32."""
    unet = UNet2DConditionModel.from_pretrained(TEACHER, torch_dtype=torch.float32)
    unet.register_to_config(_name_or_path="")  # no paths of this machine
    return unet


def pipeline(unet: UNet2DConditionModel, plan: DDIMScheduler) -> StableDiffusionPipeline:
    """The pipeline of the teacher with the sampler of latent consistency models on the same noise."""
    few: Any = LCMScheduler.from_config(plan.config, original_inference_steps=STEPS)
    return unet_text.pipeline(unet, few)


# --- paths --------------------------------------------------------------------------------------


@torch.inference_mode()
def walk(teacher: Any, asked: Asked, noise: Tensor) -> Tensor:
    """The teacher's paths from noise [n, 3, 32, 32] to pictures, fp16 [n, STEPS + 1, 3, 32, 32]."""
    plan, words = scheduler(), as_floats(asked)
    plan.set_timesteps(STEPS)
    everyone = torch.ones(len(noise), dtype=torch.bool, device=noise.device)
    both = torch.cat([captioned.forget(words, everyone)[TEXT], words[TEXT]])
    points = [noise]
    for time in plan.timesteps:
        with torch.autocast(noise.device.type, torch.bfloat16):
            found = teacher(points[-1].repeat(2, 1, 1, 1), time, both, return_dict=False)[0]
        without, given = found.float().chunk(2)
        velocity = without + GUIDANCE * (given - without)
        points.append(plan.step(velocity, time, points[-1], return_dict=False)[0])
    return torch.stack(points, 1).half()


def walked(data: Data, count: int, seed: int) -> Data:
    """Paths for `count` of the requests, spread evenly."""
    device = data.images.device
    rows = torch.arange(count, device=device) * len(data.images) // count
    asked, teacher = data.rows(rows).asked, build().to(device)
    found = []
    for start in range(0, count, TOGETHER):
        part = {name: x[start : start + TOGETHER] for name, x in asked.items()}
        shape = len(part[TEXT]), *data.images.shape[1:]
        noise = torch.randn(shape, generator=seeded(seed, start)).to(device)
        found.append(walk(teacher, part, noise))
    return Data(torch.cat(found), asked)


def kept(data: Data, count: int, seed: int, path: Path) -> Data:
    """The same, walked once (minutes) and then kept in a file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, own = path.with_suffix(".partial"), walked(data, count, seed)
        save_file({"images": own.images.cpu(), TEXT: own.asked[TEXT].cpu()}, partial)
        partial.replace(path)
    stored = load_file(path, device=str(data.images.device))
    return Data(stored["images"], {TEXT: stored[TEXT]})


def on_path(data: Data, generator: torch.Generator) -> Batch:
    """Points of paths at random, and the velocity that leads from each straight to its path's end."""
    rows = torch.arange(len(data.images), device=data.images.device)
    drawn = torch.randint(STEPS, (len(rows),), generator=generator).to(rows.device)
    times = TIMES - 1 - drawn * (TIMES // STEPS)
    noisy, end = data.images[rows, drawn].float(), data.images[:, -1].float()
    part = scheduler().alphas_cumprod.to(rows.device)[times][:, None, None, None]
    velocity = (part.sqrt() * noisy - end) / (1 - part).sqrt()
    return Batch(noisy, times, as_floats(data.asked), velocity)


MAKER = Maker(build, pipeline, captioned.forget, on_path)


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    diffusion.one_thread(options.device)
    data, held = captioned.load(options, masked=False)
    paths = (
        kept(data, WALKED, 0, options.out / "paths.safetensors"),
        kept(held, HELD, 1, options.out / "held.safetensors"),
    )
    diffusion.run(MAKER, CPU, paths, options)
