"""Activations on their grid, one program a token: INT2 to INT8 as int8, E4M3 as FP8, and their scales.

The largest magnitude gives the scale, and rounding to M mantissa bits is one addition, bit for bit as in
`rounding.round_to`; the cast to FP8 is then exact and says nothing of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minifloat.qtensor import scale_of
from minifloat.scales import Scale
from minifloat.spec import QuantSpec


@triton.jit
def magnitude(x):
    """Bits of |x|: NaN is above all numbers."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def kernel(
    x, given, codes, scales, columns, given_step,
    LOW: tl.constexpr, HIGH: tl.constexpr, M: tl.constexpr, LOWEST: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """One row: codes [columns] and its fp32 scale. LOWEST is the exponent of the subnormals' binade."""
    token = tl.program_id(0).to(tl.int64)
    peaks = tl.zeros((COUNT,), tl.int32)
    for start in range(0, columns, COUNT):
        k = start + tl.arange(0, COUNT)
        value = tl.load(x + token * columns + k, k < columns, 0.0).to(tl.float32)
        peaks = tl.maximum(peaks, magnitude(value))
    peak = tl.max(peaks, 0)
    if given is None:
        scale = tl.div_rn(peak.to(tl.float32, bitcast=True), HIGH)
        scale = tl.minimum(tl.maximum(scale, 2.0**-126), 3.4028234663852886e38)
    else:
        scale = tl.load(given + token * given_step).to(tl.float32)
    for start in range(0, columns, COUNT):
        k = start + tl.arange(0, COUNT)
        value = tl.load(x + token * columns + k, k < columns, 0.0).to(tl.float32)
        value = tl.div_rn(value, scale)
        value = tl.minimum(tl.maximum(value, LOW), HIGH)
        size = magnitude(value)
        binade = tl.maximum(size & 0x7F800000, (LOWEST + 127) << 23)
        big = (binade + ((23 - M) << 23)).to(tl.float32, bitcast=True)
        size = (size.to(tl.float32, bitcast=True) + big) - big
        value = tl.where(value < 0, -size, size)
        value = tl.where(peak > 0x7F800000, 0.0, value)  # codes cannot say NaN: the scale does
        tl.store(codes + token * columns + k, value.to(codes.dtype.element_ty), k < columns)
    tl.store(scales + token, tl.where(peak > 0x7F800000, float("nan"), scale))


def quantized(x: Tensor, spec: QuantSpec, static: Scale | None) -> tuple[Tensor, Tensor]:
    """Codes of x [tokens, columns], int8 or float8_e4m3fn, and their fp32 scales [tokens].

    Args:
        x: fp32, fp16 or bf16.
        spec: a grid that `recipe.takes_codes` admits.
        static: a calibrated scale; None takes those of the largest magnitudes.
    """
    fmt, (tokens, columns) = spec.format, x.shape
    dtype = torch.int8 if fmt.is_integer else torch.float8_e4m3fn
    codes, scales = x.new_empty(x.shape, dtype=dtype), x.new_empty(tokens, dtype=torch.float32)
    given = None if static is None else static.stored
    if given is None and spec.tile[0] == -1:
        given = scale_of(x.float(), spec).stored
    if tokens:
        count = min(4096, triton.next_power_of_2(columns))
        step = int(given is not None and given.numel() > 1)
        grid = (fmt.min, fmt.max, fmt.mantissa_bits, fmt.min_exponent)  # integers are all subnormal
        kernel[(tokens,)](x, given, codes, scales, columns, step, *grid, count)
    return codes, scales
