"""Batches of noisy pictures: what a diffusion model of the zoo learns from.

Why this file exists: models of pictures can only be compared if they saw the same pictures, requests
and objective. The objective is the velocity of progressive distillation (Salimans and Ho,
arXiv:2202.00512, section 4 and appendix D) under the cosine schedule; one request in ten may lose its
words, for classifier-free guidance (Ho and Salimans, arXiv:2207.12598).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from zoo.descent import places, seeded

TIMES = 1000

Asked = dict[str, Tensor]  # what pictures are asked for: arguments of the model, a row a picture
Forget = Callable[[Asked, Tensor], Asked]  # of rows asked, those chosen [rows] without their words


class Data(NamedTuple):
    """Pictures and what they are asked for by, on one device."""

    images: Tensor  # uint8 [n, 3, 32, 32], or clips [n, 3, frames, 32, 32], or what `Noised` knows
    asked: Asked

    def rows(self, places: Tensor | slice) -> "Data":
        """Some of them."""
        return Data(self.images[places], {name: x[places] for name, x in self.asked.items()})


class Batch(NamedTuple):
    """What one step learns from."""

    noisy: Tensor  # as the pictures, [batch, 3, 32, 32]
    times: Tensor  # [batch]
    asked: Asked
    velocity: Tensor  # as noisy


def scheduler() -> DDIMScheduler:
    """The noise of training and the way back; the last time has no signal, so samples begin there."""
    return DDIMScheduler(
        num_train_timesteps=TIMES,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,  # this and the next are what diffusers' older pipeline insists on
        steps_offset=1,
    )


def normed(images: Tensor) -> Tensor:
    """Pixels 0..255 as -1..1."""
    return images.float() / 127.5 - 1


def noised(data: Data, generator: torch.Generator) -> Batch:
    """Pictures at random times with random noise, drawn on the CPU whatever the device."""
    device = data.images.device
    clean = normed(data.images)
    times = torch.randint(TIMES, (len(clean),), generator=generator).to(device)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    plan = scheduler()
    noisy, velocity = plan.add_noise(clean, noise, times), plan.get_velocity(clean, noise, times)
    return Batch(noisy, times, as_floats(data.asked), velocity)


def as_floats(asked: Asked) -> Asked:
    """Requests as a model takes them, which are kept in half precision."""
    return {name: x.float() if x.is_floating_point() else x for name, x in asked.items()}


Noised = Callable[[Data, torch.Generator], Batch]


def draw(
    data: Data, step: int, size: int, seed: int, wordless: float, forget: Forget, noise: Noised
) -> Batch:
    """The batch of a step as a function of seed and step; an epoch visits every picture once."""
    own = data.rows(places(len(data.images), step, size, seed).to(data.images.device))
    generator = seeded(seed + 1, step)
    chosen = torch.rand(size, generator=generator) < wordless
    asked = forget(own.asked, chosen.to(own.images.device))
    return noise(Data(own.images, asked), generator)
