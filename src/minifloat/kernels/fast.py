"""Packed weights as they lie: codes are decoded in registers and caches (`native/`, `gpu/`).

For few tokens, as in generation, time is memory traffic, and packed weights are an eighth or a quarter
of fp32's. For many, arithmetic rules, and codes are multiplied in few bits where that is exact.
"""

import math
from functools import cache

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.kernels import ops, reference
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.native import states as native_states
from minifloat.kernels.packed import PackedLinear, spec_name
from minifloat.kernels.states import States
from minifloat.scales import Scale
from minifloat.spec import CacheSpec, QuantSpec


def linear(x: Tensor, layer: PackedLinear) -> Tensor:
    """As `reference.linear`, up to fp32's rounding of sums; gradients and held weights go there."""
    if not _runs(x, layer):
        return reference.linear(x, layer)
    _check(x.shape[-1], layer.shape[1])
    y: Tensor = ops.linear(x, *layer.operands())
    if layer.low_rank is not None:
        up, down = layer.low_rank
        wide = layer.quantized_input(x).float()
        y = (y.float() + (wide @ down.float().T) @ up.float().T).to(x.dtype)
    return y


def conv2d(x: Tensor, layer: PackedLinear, geometry: reference.Geometry) -> Tensor:
    """As `reference.conv2d`, which also takes low-rank branches."""
    if not _runs(x, layer) or layer.low_rank is not None or x.ndim != 4:
        return reference.conv2d(x, layer, geometry)
    padding = geometry.padding
    assert not isinstance(padding, str)
    sizes = (*geometry.kernel_size, *geometry.stride, *padding, *geometry.dilation)
    _check(x.shape[1], layer.shape[1] // math.prod(geometry.kernel_size))
    y: Tensor = ops.conv2d(x, *layer.operands(), sizes)
    return y


def quantize_activation(
    x: Tensor, spec: QuantSpec, static: Scale | None = None, fusion: Fusion | None = None
) -> tuple[Tensor, Tensor]:
    """As `fusion.quantize_activation`; codes may differ where 1e-7 puts a number on another side."""
    fusion = fusion or Fusion()
    scale = None if static is None else static.stored
    found: tuple[Tensor, Tensor] = ops.quantize_activation(x, scale, *fusion, _spec_name(spec))
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spec_name(*specs: QuantSpec) -> str:
    """One tensor's spec, or those of keys and values, in one line: what the ops are told."""
    return _written(*specs)


@cache
def _written(*specs: QuantSpec) -> str:
    return spec_name(specs[0] if len(specs) == 1 else CacheSpec(*specs))


def states(x: Tensor, spec: QuantSpec) -> States:
    """As `States.of`, to the bit; NaN and Inf become NaN in place of an error."""
    codes, scale, *zero = ops.states(x, _spec_name(spec))
    return States(codes, Scale(scale, None, *zero), spec, x.shape[-1])


def put_states(x: Tensor, room: States, first: int | Tensor) -> None:
    """As `reference.put_states`, to the bit; NaN and Inf become NaN in place of an error."""
    if x.device.type != "cpu":
        room.write(first, states(x, room.spec))
    elif isinstance(first, int):
        native_states.put(x, room, first)
    else:
        stored, _, zero = room.scale
        ops.put_states(x, room.codes, stored, zero, first, _spec_name(room.spec))


def attention_kv(
    query: Tensor, keys: States, values: States, mask: Tensor | None, scaling: float
) -> Tensor:
    """As `reference.attention_kv`, up to the order of sums; several queries and gradients go there."""
    if query.shape[2] != 1 or _has_gradient(query):
        return reference.attention_kv(query, keys, values, mask, scaling)
    stored = [(part.codes, part.scale.stored, part.scale.zero) for part in (keys, values)]
    spec = _spec_name(keys.spec, values.spec)
    y: Tensor = ops.attention_kv(query, *stored[0], *stored[1], mask, scaling, values.width, spec)
    return y


def _check(given: int, wanted: int) -> None:
    """Kernels read as many codes as there are features."""
    if given != wanted:
        raise UserError(f"the layer takes {wanted} features, but its input has {given}")


def _runs(x: Tensor, layer: PackedLinear) -> bool:
    return layer.held is None and not _has_gradient(x)


def _has_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()
