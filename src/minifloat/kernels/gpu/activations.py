"""Activations on their grid, one program a token: INT2 to INT8 as int8, E4M3 as FP8, and their scales;
with what the model computes just before them (`kernels/fusion.py`).

A token is read once and stays in registers. The largest magnitude gives the scale, and rounding to M
mantissa bits is one addition, bit for bit as in `rounding.round_to`; the cast to FP8 is then exact and
says nothing of its own.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minifloat.kernels.fusion import Fusion
from minifloat.qtensor import scale_of
from minifloat.scales import Scale
from minifloat.spec import QuantSpec


@triton.jit
def magnitude(x):
    """Bits of |x|: NaN is above all numbers."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def rounded(x, LOWEST: tl.constexpr, M: tl.constexpr):
    """x to M mantissa bits, ties to even; LOWEST is the exponent of the subnormals' binade."""
    size = magnitude(x)
    binade = tl.maximum(size & 0x7F800000, (LOWEST + 127) << 23)
    big = (binade + ((23 - M) << 23)).to(tl.float32, bitcast=True)
    size = (size.to(tl.float32, bitcast=True) + big) - big
    return tl.where(x < 0, -size, size)


@triton.jit
def sigmoid(x):
    """Without a number that overflows on the way."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def fused(
    value, other, weight, bias, gain, shift, token, image, k, columns, eps, KIND: tl.constexpr
):
    """The function before the grid, as `Fusion.of`; zero beyond the columns."""
    seen = k < columns
    if KIND == "silu_mul":
        more = tl.load(other + token * columns + k, seen, 0.0).to(tl.float32)
        value = value * sigmoid(value) * more
    elif KIND == "gelu":
        value = 0.5 * value * (1 + tl.erf(value * 0.7071067811865476))
    elif KIND == "gelu_tanh":  # (1 + tanh(z)) / 2 is sigmoid(2 z)
        value = value * sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    elif KIND != "plain":
        if KIND == "layer":
            value = tl.where(seen, value - tl.sum(value, 0) / columns, 0.0)
        value *= 1 / tl.sqrt_rn(tl.sum(value * value, 0) / columns + eps)
        if weight is not None:
            value *= tl.load(weight + k, seen, 0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + k, seen, 0.0).to(tl.float32)
        if gain is not None:
            value *= 1 + tl.load(gain + image * columns + k, seen, 0.0).to(tl.float32)
            value += tl.load(shift + image * columns + k, seen, 0.0).to(tl.float32)
    return value


@triton.jit
def kernel(
    x, other, weight, bias, gain, shift, given, codes, scales, columns, each, given_step, eps,
    KIND: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, M: tl.constexpr,
    LOWEST: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """One row: codes [columns] and its fp32 scale."""
    token, k = tl.program_id(0).to(tl.int64), tl.arange(0, COUNT)
    value = tl.load(x + token * columns + k, k < columns, 0.0).to(tl.float32)
    image = token // each
    value = fused(value, other, weight, bias, gain, shift, token, image, k, columns, eps, KIND)
    peak = tl.max(magnitude(value), 0)
    if given is None:
        scale = tl.div_rn(peak.to(tl.float32, bitcast=True), HIGH)
        scale = tl.minimum(tl.maximum(scale, 2.0**-126), 3.4028234663852886e38)
    else:
        scale = tl.load(given + token * given_step).to(tl.float32)
    value = tl.div_rn(value, scale)
    value = tl.minimum(tl.maximum(value, LOW), HIGH)
    value = rounded(value, LOWEST, M)
    value = tl.where(peak > 0x7F800000, 0.0, value)  # codes cannot say NaN: the scale does
    tl.store(codes + token * columns + k, value.to(codes.dtype.element_ty), k < columns)
    tl.store(scales + token, tl.where(peak > 0x7F800000, float("nan"), scale))


def quantized(
    x: Tensor, spec: QuantSpec, static: Scale | None, fusion: Fusion | None = None
) -> tuple[Tensor, Tensor]:
    """As `fusion.quantize_activation`."""
    fusion = fusion or Fusion()
    fusion.check(x)
    given = None if static is None else static.stored
    if given is None and spec.tile[0] == -1:
        given = scale_of(fusion.of(x), spec).stored
    arguments = arguments_of(x.contiguous(), spec, given, fusion)
    if len(x):
        count: int = arguments["COUNT"]
        kernel[(len(x),)](**arguments, num_warps=warps_of(count))
    return arguments["codes"], arguments["scales"]


def warps_of(count: int) -> int:
    """Warps for a row of so many columns, of which a thread has 32 at most until there are 16."""
    return min(16, max(4, count // 1024))


def arguments_of(
    x: Tensor, spec: QuantSpec, given: Tensor | None, fusion: Fusion
) -> dict[str, Any]:
    """All that the kernel is called with."""
    fmt, (tokens, columns) = spec.format, x.shape
    dtype = torch.int8 if fmt.is_integer else torch.float8_e4m3fn
    names = ("other", "weight", "bias", "gain", "shift")
    operands = {name: getattr(fusion, name) for name in names}
    return {
        "x": x,
        **{
            name: value if value is None else value.contiguous() for name, value in operands.items()
        },
        "given": given,
        "codes": x.new_empty(x.shape, dtype=dtype),
        "scales": x.new_empty(tokens, dtype=torch.float32),
        "columns": columns,
        "each": 1 if fusion.gain is None else max(1, tokens // len(fusion.gain)),
        "given_step": int(given is not None and given.numel() > 1),
        "eps": fusion.eps,
        "KIND": fusion.kind,
        "LOW": fmt.min,
        "HIGH": fmt.max,
        "M": fmt.mantissa_bits,
        "LOWEST": fmt.min_exponent,  # integers are all subnormal
        "COUNT": triton.next_power_of_2(columns),
    }
