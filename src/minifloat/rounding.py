"""The only rounding code: numbers to the nearest value of a `Format`, to codes and back.

Rounding to M mantissa bits is one addition (Hauser 1996; used with fp32's 23 fraction bits):
with 2^e the binade of |x|, adding 2^(e + 23 - M) pushes all lower bits out of the sum, and fp32's
own rounding is nearest-even. The bits that stay are at once the code:

    magic = 2^(e + 23 - M),  e = max(floor(log2 |x|), min_exponent)
    value = (|x| + magic) - magic
    code  = ((e - min_exponent) << M) + (bits(|x| + magic) - bits(magic))

Subnormals and integers are the case e = min_exponent; a carry into the next binade carries into the
exponent field of the code. float64 inputs use the same lines with 52 for 23. A format without
mantissa bits has no even fraction: its ties go to the even *code* (IEEE P3109's rule).

Special values: NaN stays NaN; Inf and all beyond `max` saturate, or, with `saturate=False`, become
what the format's top offers; -0 keeps its sign in signed floating-point formats.

CPU tensors are walked in chunks that fit the cache: 3-4x faster than whole-tensor temporaries.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.formats import Format

Rounding = Literal["nearest", "away", "stochastic"]
Direction = Literal["nearest", "up", "down"]

# Elements of a chunk: five fp32 temporaries of it stay inside a 512 KiB second-level cache.
_CHUNK = 1 << 15


class _Float(NamedTuple):
    """The layout of the float that the arithmetic runs in."""

    dtype: torch.dtype
    integer: torch.dtype
    fraction_bits: int
    exponent_bias: int

    @property
    def exponent_mask(self) -> int:
        return (2 * self.exponent_bias + 1) << self.fraction_bits


_FP32 = _Float(torch.float32, torch.int32, 23, 127)
_FP64 = _Float(torch.float64, torch.int64, 52, 1023)


def round_to(
    x: Tensor,
    fmt: Format,
    *,
    rounding: Rounding = "nearest",
    saturate: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Round every element to a value of the format; the straight-through estimator for gradients.

    Args:
        x: float tensor of any shape, in units of the format (already divided by its scale).
        fmt: target format.
        rounding: nearest (ties to even), away (ties away from zero) or stochastic.
        saturate: clamp to [min, max]; otherwise overflow gives NaN or Inf as the top allows,
            and still clamps where the top is finite.
        generator: source of the stochastic draws.

    Returns:
        Tensor of the shape and dtype of `x`. Its gradient is 1 inside [min, max] and 0 outside.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        rounded: Tensor = _StraightThrough.apply(x, fmt, rounding, saturate, generator)  # type: ignore[no-untyped-call]
        return rounded
    return _round(x, fmt, rounding, saturate, generator)


def encode(x: Tensor, fmt: Format, *, saturate: bool = True) -> Tensor:
    """Round to nearest and return the codes as uint8, one a byte, in the shape of `x`.

    Raises:
        UserError: NaN in a format that has no NaN.
    """
    if fmt.is_native:
        raise UserError(f"{fmt} is stored as its own dtype and has no codes")
    nan = x.isnan() if x.is_floating_point() else torch.zeros((), dtype=torch.bool)
    if fmt.nan_code is None and bool(nan.any()):
        raise UserError(f"NaN cannot be written as {fmt}, which has no code for it")
    wide = x.to(_layout(x).dtype)
    if fmt.levels is not None:
        return _nearest_level(wide, fmt)
    if fmt.is_power_of_two:
        exponent = _exponent(wide.double(), fmt, "nearest")
        codes = exponent.sub_(fmt.min_exponent).to(torch.uint8)
    else:
        codes = _chunked(lambda part, out: _encode_chunk(part, fmt, out), wide, torch.uint8)
    if not saturate and fmt.top == "ieee":
        over = round_to(wide, fmt, saturate=False).isinf()
        sign = (wide < 0).to(torch.uint8) << (fmt.bits - 1)
        codes = torch.where(over, sign | fmt.infinity_code, codes)
    if not saturate and fmt.top == "nan":
        nan = nan | round_to(wide, fmt, saturate=False).isnan()
    if fmt.nan_code is not None:
        codes = torch.where(nan, fmt.nan_code, codes)
    return codes


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """The float32 values of uint8 codes, in their shape."""
    table = value_table(fmt, codes.device)
    return table.index_select(0, codes.reshape(-1).int()).reshape(codes.shape)


@lru_cache(maxsize=256)
def value_table(fmt: Format, device: torch.device) -> Tensor:
    """float32 values of all codes of a format; shared, not to be written to."""
    return torch.tensor(fmt.values, dtype=torch.float64).to(device, torch.float32)


def round_power_of_two(x: Tensor, fmt: Format, direction: Direction) -> Tensor:
    """Positive numbers to the powers of two of a format: nearest in value, up (>= x) or down (<= x).

    Ties (1.5 times a power) go up, as ml_dtypes and torch cast to E8M0. Zero goes to the smallest.
    """
    exponent = _exponent(x.double(), fmt, direction)
    return torch.ldexp(torch.ones_like(x), exponent.to(x.dtype))


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is that of a clamp (Bengio et al. 2013; LSQ's form with a scale)."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        fmt: Format,
        rounding: Rounding,
        saturate: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        ctx.save_for_backward((x >= fmt.min) & (x <= fmt.max))
        return _round(x.detach(), fmt, rounding, saturate, generator)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * inside, None, None, None, None


def _round(
    x: Tensor,
    fmt: Format,
    rounding: Rounding,
    saturate: bool,
    generator: torch.Generator | None,
) -> Tensor:
    layout = _layout(x)
    if fmt.is_native:
        return _round_native(x, fmt)
    wide = x.to(layout.dtype)
    if fmt.levels is not None:
        levels = decode(_nearest_level(wide, fmt), fmt)
        return levels.masked_fill(wide.isnan(), torch.nan).to(x.dtype)
    if fmt.is_power_of_two:
        rounded = round_power_of_two(wide, fmt, "nearest")
        return rounded.masked_fill(~(wide > 0), torch.nan).to(x.dtype)

    def chunk(part: Tensor, out: Tensor) -> None:
        _round_chunk(part, fmt, out)
        if rounding != "nearest":
            _reround(part, fmt, out, rounding, generator)
        if not saturate and fmt.top != "finite":
            _overflow(part, fmt, out, rounding)

    return _chunked(chunk, wide, layout.dtype).to(x.dtype)


def _round_native(x: Tensor, fmt: Format) -> Tensor:
    dtypes = {5: torch.float16, 8: torch.bfloat16 if fmt.mantissa_bits == 7 else torch.float32}
    return x.clamp(fmt.min, fmt.max).to(dtypes[fmt.exponent_bits]).to(x.dtype)


def _layout(x: Tensor) -> _Float:
    return _FP64 if x.dtype == torch.float64 else _FP32


def _chunked(function: Callable[[Tensor, Tensor], None], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply `function(part, out)` to cache-sized pieces of a CPU tensor, or to the whole elsewhere."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        function(x, out)
        return out
    flat, flat_out = x.reshape(-1), out.view(-1)
    for start in range(0, flat.numel(), _CHUNK):
        function(flat[start : start + _CHUNK], flat_out[start : start + _CHUNK])
    return out


def _magic(a: Tensor, fmt: Format, layout: _Float) -> Tensor:
    """2^(e + 23 - M) for the binade of every element of a >= 0, as integers (float bits)."""
    bits = a.view(layout.integer) & layout.exponent_mask
    bits.clamp_(min=(fmt.min_exponent + layout.exponent_bias) << layout.fraction_bits)
    return bits.add_((layout.fraction_bits - fmt.mantissa_bits) << layout.fraction_bits)


def _clamped(x: Tensor, fmt: Format, layout: _Float) -> Tensor:
    """|x| within the range of the format; without mantissa bits, ties moved to their even code."""
    a = x.clamp(fmt.min, fmt.max).abs_()
    if fmt.mantissa_bits:
        return a
    bits = a.view(layout.integer)
    half = 1 << (layout.fraction_bits - 1)
    field = (bits >> layout.fraction_bits) - (layout.exponent_bias + fmt.min_exponent) + 1
    tie_below_even = (bits & (2 * half - 1) == half) & (field % 2 == 0) & (field > 0)
    tie_below_even &= bits < layout.exponent_mask  # not the quiet NaN, which looks the same
    return bits.sub_(tie_below_even * half).view(layout.dtype)


def _round_chunk(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = _layout(x)
    a = _clamped(x, fmt, layout)
    magic = _magic(a, fmt, layout).view(layout.dtype)
    torch.add(a, magic, out=out).sub_(magic)
    if fmt.is_integer:  # two's complement has no negative zero
        out.mul_(x.sign()).add_(0.0)
    elif fmt.signed:
        out.copysign_(x)


def _encode_chunk(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = _layout(x)
    a = _clamped(x, fmt, layout)
    magic = _magic(a, fmt, layout)
    codes = a.add_(magic.view(layout.dtype)).view(layout.integer).sub_(magic)
    offset = layout.exponent_bias + fmt.min_exponent + layout.fraction_bits - fmt.mantissa_bits
    if not fmt.is_integer:
        field = (magic >> layout.fraction_bits).sub_(offset)
        codes.add_(field.bitwise_left_shift_(fmt.mantissa_bits))
    if fmt.is_integer and fmt.signed:
        codes.mul_(torch.where(x < 0, -1, 1)).bitwise_and_(2**fmt.bits - 1)
    elif fmt.signed:
        codes.bitwise_or_(torch.signbit(x).to(layout.integer) << (fmt.bits - 1))
    out.copy_(codes)


def _reround(
    x: Tensor, fmt: Format, out: Tensor, rounding: Rounding, generator: torch.Generator | None
) -> None:
    """Turn the nearest-even result into ties-away or stochastic rounding, exactly."""
    layout = _layout(x)
    a = x.clamp(fmt.min, fmt.max).abs_()
    ulp = _magic(a, fmt, layout).sub_(layout.fraction_bits << layout.fraction_bits)
    ulp = ulp.view(layout.dtype)
    floor = torch.where(out.abs() > a, out.abs() - ulp, out.abs())
    if rounding == "away":
        up = a - floor >= ulp / 2
    else:
        draw = torch.rand(a.shape, dtype=a.dtype, device=a.device, generator=generator)
        up = draw * ulp < a - floor
    rounded = floor + up * ulp
    if fmt.signed:
        rounded = torch.copysign(rounded, x) + (0.0 if fmt.is_integer else -0.0)
    out.copy_(torch.where(x.isnan(), x, rounded))


def _overflow(x: Tensor, fmt: Format, out: Tensor, rounding: Rounding) -> None:
    """Replace what rounds beyond max by Inf (IEEE) or NaN; the tie at the top follows the mode."""
    ulp = 2.0 ** (fmt.max_exponent - fmt.mantissa_bits)
    limit = fmt.max + ulp / 2
    magnitude = x.abs() if fmt.signed else x
    # Nearest-even keeps the tie where max is an even code (E4M3's 448); away always leaves.
    keeps_tie = rounding == "nearest" and fmt.values.index(fmt.max) % 2 == 0
    over = magnitude > limit if keeps_tie else magnitude >= limit
    special = torch.copysign(torch.full_like(x, torch.inf), x) if fmt.top == "ieee" else torch.nan
    out.copy_(torch.where(over, special, out))


def _exponent(x: Tensor, fmt: Format, direction: Direction) -> Tensor:
    """log2(x) as integers within the format; nearest is in value, so the switch is at 1.5."""
    smallest = 2.0 ** (fmt.min_exponent - 1)  # frexp has no exponent for 0 and Inf
    mantissa, exponent = torch.frexp(x.clamp(smallest, 2.0 * fmt.max))
    exponent = exponent - 1  # x = mantissa * 2^exponent with the mantissa in [0.5, 1)
    if direction == "up":
        exponent += (mantissa > 0.5).int()
    elif direction == "nearest":
        exponent += (mantissa >= 0.75).int()
    return exponent.clamp_(fmt.min_exponent, fmt.max_exponent)


def _nearest_level(x: Tensor, fmt: Format) -> Tensor:
    """Code of the nearest table value; a tie goes to the lower value."""
    assert fmt.levels is not None
    levels = torch.tensor(sorted(fmt.levels), dtype=x.dtype, device=x.device)
    order = torch.tensor(sorted(range(len(fmt.levels)), key=fmt.levels.__getitem__))
    middle = (levels[1:] + levels[:-1]) / 2
    return order.to(x.device, torch.uint8)[torch.bucketize(x.contiguous(), middle)]
