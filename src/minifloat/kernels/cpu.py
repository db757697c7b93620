"""Packed weights on the CPU: codes are decoded in registers (`native/w4.c`, `native/w8.c`).

For few tokens, as in generation, time is memory traffic, and packed weights are an eighth or a quarter
of fp32's. Above `FEW` tokens arithmetic rules: the weight is decoded and torch multiplies.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minifloat.formats import E5M2, Format
from minifloat.grids import fits_half, half_layout, value_table
from minifloat.kernels import reference
from minifloat.kernels.native import library
from minifloat.kernels.packed import PackedLinear
from minifloat.qtensor import fake_quantize
from minifloat.spec import LayerSpec

# Tokens from which decoding the whole weight for torch's product is faster.
FEW = 16
# Columns that a step of the C loops takes, by the bits of a code; a group starts on one.
_STEPS = {4: 32, 8: 16}


def accepts_w4(spec: LayerSpec) -> bool:
    """Any format of four bits, in rows or groups that start on a step."""
    return _groups_fit(spec, 4)


def accepts_w8(spec: LayerSpec) -> bool:
    """INT8, E5M2 and every 8-bit float that fits fp16, in rows or groups that start on a step."""
    return _groups_fit(spec, 8) and spec.weight is not None and _reads(spec.weight.format)


def linear_w4(x: Tensor, layer: PackedLinear) -> Tensor:
    """As `reference.linear`, up to fp32's rounding."""

    def multiply(wide: Tensor) -> Tensor:
        y: Tensor = torch.ops.minifloat.linear_w4(wide, *_operands(layer))
        return y

    return _linear(x, layer, multiply, decoded_w4)


def linear_w8(x: Tensor, layer: PackedLinear) -> Tensor:
    """As `reference.linear`, up to fp32's rounding."""
    fmt = _weight_format(layer)

    def multiply(wide: Tensor) -> Tensor:
        shift, mask, factor = (0, 0, 1.0) if fmt.is_integer else half_layout(fmt)
        operands = _operands(layer)
        y: Tensor = torch.ops.minifloat.linear_w8(wide, *operands, shift, mask, factor)
        return y

    return _linear(x, layer, multiply, PackedLinear.weight)


def decoded_w4(layer: PackedLinear) -> Tensor:
    """The weight [out, in], bit for bit that of `PackedLinear.weight`."""
    if layer.held is not None:
        return layer.held
    w: Tensor = torch.ops.minifloat.decode_w4(*_operands(layer), layer.shape[1])
    return w.to(layer.dtype)


def _linear(
    x: Tensor,
    layer: PackedLinear,
    multiply: Callable[[Tensor], Tensor],
    decode: Callable[[PackedLinear], Tensor],
) -> Tensor:
    """What all packed layers share: quantized input, low-rank branch, bias, quantized output."""
    tokens = x.numel() // layer.shape[1]
    if tokens > FEW or x.requires_grad:
        return reference.linear(x, replace(layer, held=decode(layer)))
    x, spec = layer.quantized_input(x), layer.spec
    wide = x.reshape(tokens, layer.shape[1]).float()
    y = multiply(wide)
    if layer.low_rank is not None:
        up, down = layer.low_rank
        y = y + (wide @ down.float().T) @ up.float().T
    if layer.bias is not None:
        y = y + layer.bias
    y = y.to(x.dtype).reshape(*x.shape[:-1], layer.shape[0])
    return y if spec.output is None else fake_quantize(y, spec.output)


def _groups_fit(spec: LayerSpec, bits: int) -> bool:
    weight = spec.weight
    if weight is None or library() is None or weight.zero_point or weight.format.bits != bits:
        return False
    rows, columns = weight.tile
    return rows == 1 and (columns == -1 or columns % _STEPS[bits] == 0)


def _weight_format(layer: PackedLinear) -> Format:
    assert layer.spec.weight is not None
    return layer.spec.weight.format


def _operands(layer: PackedLinear) -> tuple[Tensor, Tensor, Tensor, int]:
    """Codes, fp32 scales [out, groups], the values of all codes and the columns of a group."""
    spec = layer.spec.weight
    assert spec is not None
    group = layer.shape[1] if spec.tile[1] == -1 else spec.tile[1]
    table = value_table(spec.format, layer.codes.device)
    return layer.codes, layer.scale.values(spec), table, group


def _reads(fmt: Format) -> bool:
    return (fmt.is_integer and fmt.signed) or fmt == E5M2 or fits_half(fmt)
