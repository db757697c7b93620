"""The error of a denoiser's predictions along one full-precision trajectory, step by step.

Both networks are asked the same, so that an error of an early step does not count again in later ones;
what it does to the picture is measured on pictures (`images.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minifloat.calibrate.stats import sqnr
from minifloat.calibrate.trajectories import record

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trajectory:
    """Calls of a denoiser in the order of a sampler, with what full precision answered."""

    calls: list[dict[str, Any]]
    answers: list[Tensor]

    def sqnr(self, network: nn.Module) -> list[tuple[str, float]]:
        """Signal to quantization noise in dB of a network's answers, by call, with the call's time."""
        return [
            (_time(call), sqnr(answer, answer - found))
            for call, answer, found in zip(
                self.calls, self.answers, predictions(network, self.calls), strict=True
            )
        ]


def follow(denoiser: nn.Module, sample: Callable[[], Result]) -> tuple[Result, Trajectory]:
    """Run a sampler; what it returns, and what it asked its denoiser."""
    answers: list[Tensor] = []
    made: list[Result] = []
    handle = denoiser.register_forward_hook(lambda _m, _a, out: answers.append(_first(out).clone()))
    try:
        calls = record(denoiser, lambda: made.append(sample()))
    finally:
        handle.remove()
    return made[0], Trajectory(calls, answers)


@torch.no_grad()
def predictions(network: nn.Module, calls: list[dict[str, Any]]) -> list[Tensor]:
    """The network's answers, whether its caller wants a tuple or a record."""
    return [_first(network(**call)) for call in calls]


def _first(output: Any) -> Tensor:
    found: Tensor = tree_leaves(output)[0]
    return found


def _time(call: dict[str, Any]) -> str:
    """What the sampler calls this moment, for people."""
    for name in ("timestep", "t", "timesteps"):
        if name in call:
            return f"t = {float(torch.as_tensor(call[name]).flatten()[0]):.4g}"
    return ""
