"""Keys and values to codes on the GPU: scales, zero points, rounding and packing in one kernel.

The bits are those of `States.of`. A token that holds NaN or Inf gets NaN for a scale, so that attention
says so, where the reference raises; looking would make the host wait for the device in every layer.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from minifloat.kernels.gpu.activations import magnitude, rounded
from minifloat.kernels.states import States
from minifloat.spec import QuantSpec


@triton.jit
def kernel(
    x, codes, scales, zeros, width, row_bytes, groups,
    BITS: tl.constexpr, INTEGER: tl.constexpr, M: tl.constexpr, BIAS: tl.constexpr,
    LOWEST: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, TINY: tl.constexpr,
    TOP: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One token of one head, as [GROUPS, GROUP]: its codes, scales and zero points."""
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, GROUPS)
    k = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(x + row * width + k, k < width, 0.0).to(tl.float32)
    bits = tl.max(magnitude(value), 1)
    lost = bits >= 0x7F800000
    value = tl.where(lost[:, None], 0.0, value)
    low = tl.minimum(tl.min(value, 1), 0.0)
    clip = bits.to(tl.float32, bitcast=True)
    if zeros is not None:
        clip = tl.maximum(tl.max(value, 1), 0.0) - low
    clip = tl.where(lost, 0.0, clip)
    scale = tl.minimum(tl.maximum(tl.div_rn(clip, HIGH), TINY), TOP)
    scale = scale.to(scales.dtype.element_ty)
    s = scale.to(tl.float32)
    units = tl.div_rn(value, tl.broadcast_to(s[:, None], (GROUPS, GROUP)))
    if zeros is not None:
        zero = tl.minimum(rounded(tl.div_rn(-low, s), LOWEST, M), HIGH)
        tl.store(zeros + row * groups + g, zero.to(tl.uint8), g < groups)
        units = rounded(tl.minimum(tl.maximum(units, -HIGH), HIGH), LOWEST, M) + zero[:, None]
    number = rounded(tl.minimum(tl.maximum(units, LOW), HIGH), LOWEST, M)
    if INTEGER:
        code = number.to(tl.int32) & ((1 << BITS) - 1)
    else:
        field = (tl.abs(number) * (2.0 ** (BIAS - 127))).to(tl.int32, bitcast=True) >> (23 - M)
        code = tl.where(units.to(tl.int32, bitcast=True) < 0, field | (1 << (BITS - 1)), field)
    code = tl.where(k < width, code, 0)
    CODES: tl.constexpr = 8 // BITS
    places = tl.arange(0, CODES) * BITS
    code = tl.sum(tl.reshape(code, (GROUPS * GROUP // CODES, CODES)) << places[None, :], 1)
    at = tl.arange(0, GROUPS * GROUP // CODES)
    tl.store(codes + row * row_bytes + at, code.to(tl.uint8), at < row_bytes)
    scale = tl.where(lost, float("nan"), s).to(scales.dtype.element_ty)
    tl.store(scales + row * groups + g, scale, g < groups)


def states_of(x: Tensor, spec: QuantSpec) -> States:
    """As `States.of` for keys or values [batch, heads, tokens, width], which may be NaN."""
    states = States.empty(x, spec)
    rows = states.codes.numel() // max(1, states.codes.shape[-1])
    if rows:
        kernel[(rows,)](**arguments_of(x.contiguous(), states), num_warps=1)
    return states


def arguments_of(x: Tensor, states: States) -> dict[str, Any]:
    """All that the kernel is called with."""
    spec, fmt, whole = states.spec, states.spec.format, triton.next_power_of_2(states.width)
    group = whole if spec.tile[1] == -1 else min(whole, spec.tile[1])
    return {
        "x": x,
        "codes": states.codes,
        "scales": states.scale.stored,
        "zeros": states.scale.zero,
        "width": states.width,
        "row_bytes": states.codes.shape[-1],
        "groups": states.scale.stored.shape[-1],
        "BITS": fmt.bits,
        "INTEGER": fmt.is_integer,
        "M": fmt.mantissa_bits,
        "BIAS": fmt.bias,
        "LOWEST": fmt.min_exponent,  # integers are all subnormal
        "LOW": fmt.min,
        "HIGH": fmt.max,
        "TINY": 2.0**spec.scale_format.min_exponent,
        "TOP": spec.scale_format.max,
        "GROUPS": whole // group,
        "GROUP": group,
    }
