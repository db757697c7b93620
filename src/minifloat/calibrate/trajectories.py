"""Calibration batches of a diffusion model: what its own sampler feeds it.

Inputs of a denoiser change from noise to image along a trajectory, and later ones depend on the
model's own outputs; noise added to real images is not what it will see. So a real sampling loop runs,
with guidance and all, and the calls of the denoiser are written down.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


@torch.no_grad()
def record(
    denoiser: nn.Module, sample: Callable[[], Any], *, limit: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """The arguments of every call of a denoiser while `sample()` runs, by parameter name.

    Args:
        denoiser: the network that the sampler calls.
        sample: runs the sampler, once or for several prompts and seeds.
        limit: keep so many calls: one from each of `limit` equal spans of the run, so that all
            times stay represented.
        seed: of that choice.
    """
    signature = inspect.signature(denoiser.forward)
    calls: list[dict[str, Any]] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = signature.bind(*args, **kwargs).arguments
        before = calls[-1] if calls else {}
        calls.append({name: _kept(value, before.get(name)) for name, value in own.items()})

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        sample()
    finally:
        handle.remove()
    if limit is None or limit >= len(calls):
        return calls
    generator = torch.Generator().manual_seed(seed)
    places = (torch.arange(limit) + torch.rand(limit, generator=generator)) * len(calls) / limit
    return [calls[int(place)] for place in places]


def _kept(value: Any, before: Any) -> Any:
    """A copy, for the sampler may overwrite its tensors; prompts are held once, not once a step."""
    if isinstance(value, Tensor) and isinstance(before, Tensor) and _same(value, before):
        return before
    return tree_map_only(Tensor, Tensor.clone, value)


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)
