"""Slots of layers: rows of what writes a channel, columns of what reads it, gains of norms.

Layers are known by the shapes of their parameters. Norms are asked, not looked up: a copy of the norm
is run on numbers, which tells its offset (Gemma's 1 + w) and whether it subtracts the mean.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.models.seam import Slot


def rows(name: str, layer: nn.Module, **where: Any) -> tuple[Slot, ...]:
    """The outputs of a layer: its weight's rows and its bias; an embedding's columns."""
    if isinstance(layer, nn.Embedding):
        return (Slot(f"{name}.weight", 1, **where),)
    weight = Slot(f"{name}.weight", 1 if _is_transposed(layer) else 0, **where)
    return weight, *bias(name, layer, **where)


def bias(name: str, layer: nn.Module, **where: Any) -> tuple[Slot, ...]:
    """A layer's bias, if it has one."""
    return (Slot(f"{name}.bias", 0, **where),) if isinstance(layer.bias, Tensor) else ()


def columns(name: str, layer: nn.Module, **where: Any) -> tuple[Slot, ...]:
    """The inputs of a layer: its weight's columns."""
    return (Slot(f"{name}.weight", 0 if _is_transposed(layer) else 1, **where),)


def features(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a layer."""
    assert isinstance(layer.weight, Tensor)
    first, second = layer.weight.shape[:2]
    return (second, first) if _is_transposed(layer) else (first, second)


def is_layer(module: Any) -> bool:
    """Whether a module is a linear layer, also one that stores its weight as [in, out] (GPT-2)."""
    return isinstance(module, nn.Linear) or _is_transposed(module)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: by its class's name, and with no more than a gain and a bias."""
    names = {name for name, _ in module.named_parameters()}
    return "norm" in type(module).__name__.lower() and names <= {"weight", "bias"}


def gains(name: str, norm: nn.Module, **where: Any) -> tuple[Slot, ...]:
    """A norm's gain and bias; nothing if it has none or one of an odd shape."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return ()
    gain = Slot(f"{name}.weight", 0, offset=gain_offset(norm), **where)
    has_bias = getattr(norm, "bias", None) is not None
    return (gain, Slot(f"{name}.bias", 0, **where)) if has_bias else (gain,)


@torch.no_grad()
def gain_offset(norm: nn.Module) -> float:
    """1 if the norm multiplies with 1 + weight, 0 if with its weight."""
    if isinstance(norm, nn.GroupNorm):  # wants its channels elsewhere
        return 0.0
    return float(_probe(norm, gain=0.0)(_numbers(norm)).abs().max() > 0.01)


@torch.no_grad()
def subtracts_mean(norm: nn.Module, width: int) -> bool:
    """Whether a norm is blind to a constant in all channels, and so no friend of rotations."""
    x, probe = _numbers(norm, width), _probe(norm, gain=1.0)
    return bool(torch.allclose(probe(x), probe(x + 1), atol=1e-3))


def _probe(norm: nn.Module, gain: float) -> nn.Module:
    """A copy of a norm with a gain of our own and no bias; the norm itself may be on any device."""
    probe = copy.deepcopy(norm).to_empty(device="cpu").float()
    for name, parameter in probe.named_parameters():
        parameter.fill_(gain if name == "weight" else 0.0)
    return probe


def _numbers(norm: nn.Module, width: int = 0) -> Tensor:
    weight = getattr(norm, "weight", None)
    size = weight.shape[-1] if isinstance(weight, Tensor) else width
    return torch.linspace(-1.0, 2.0, size).square()[None, None]


def _is_transposed(layer: Any) -> bool:
    """transformers' Conv1D is a linear layer with its weight stored as [in, out]."""
    return type(layer).__name__ == "Conv1D"
