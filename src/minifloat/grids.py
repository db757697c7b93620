"""How one chunk of numbers goes to the values and to the codes of a format, family by family.

Rounding to M mantissa bits is one addition (Hauser 1996; used with fp32's 23 fraction bits):
with 2^e the binade of |x|, adding 2^(e + 23 - M) pushes all lower bits out of the sum, and fp32's
own rounding is nearest-even. The bits that stay are at once the code:

    magic = 2^(e + 23 - M),  e = max(floor(log2 |x|), min_exponent)
    value = (|x| + magic) - magic
    code  = ((e - min_exponent) << M) + (bits(|x| + magic) - bits(magic))

Subnormals are the case e = min_exponent; a carry into the next binade carries into the exponent
field of the code. float64 inputs use the same lines with 52 for 23. Without mantissa bits there is
no even fraction: ties go to the even *code* (IEEE P3109's rule), and rounding is one addition to the
bits themselves. A `Grid`'s functions are handed (x, format, out); they saturate and round to
nearest. `round` keeps NaN; what `encode` makes of NaN is mended by its caller.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from minifloat.formats import E4M3, E5M2, E8M0, Format

Direction = Literal["nearest", "up", "down"]
Chunk = Callable[[Tensor, Format, Tensor], None]

# Formats that torch casts to in vector code, with the same values and ties; and from, likewise fast.
_CASTS = {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2, E8M0: torch.float8_e8m0fnu}
_CASTS_BACK = {fmt: _CASTS[fmt] for fmt in (E5M2, E8M0)}


class Grid(NamedTuple):
    """The two functions of a family of formats."""

    round: Chunk
    encode: Chunk


class Layout(NamedTuple):
    """The layout of the float that the arithmetic runs in."""

    dtype: torch.dtype
    integer: torch.dtype
    fraction_bits: int
    exponent_bias: int

    @property
    def exponent_mask(self) -> int:
        return (2 * self.exponent_bias + 1) << self.fraction_bits


_FP32 = Layout(torch.float32, torch.int32, 23, 127)
_FP64 = Layout(torch.float64, torch.int64, 52, 1023)


def layout_of(x: Tensor) -> Layout:
    """float64 stays; everything else is computed in float32."""
    return _FP64 if x.dtype == torch.float64 else _FP32


def grid_of(fmt: Format) -> Grid:
    """The functions of a format's family."""
    if fmt.is_table:
        return Grid(_round_levels, _encode_levels)
    if fmt.is_power_of_two:
        return Grid(_round_powers, encode_powers)
    if fmt.is_integer:
        return Grid(_round_integers, _encode_integers)
    if fmt.mantissa_bits == 0:
        return Grid(_round_exponents, _encode_exponents)
    return Grid(_round_floats, _encode_floats)


def magic_bits(a: Tensor, fmt: Format, layout: Layout) -> Tensor:
    """2^(e + 23 - M) for the binade of every element of a >= 0, as integers (float bits)."""
    bits = a.view(layout.integer) & layout.exponent_mask
    bits.clamp_(min=(fmt.min_exponent + layout.exponent_bias) << layout.fraction_bits)
    return bits.add_((layout.fraction_bits - fmt.mantissa_bits) << layout.fraction_bits)


def _round_floats(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = layout_of(x)
    if fmt in _CASTS_BACK and layout is _FP32:
        out.copy_(x.clamp(fmt.min, fmt.max).to(_CASTS_BACK[fmt]))
        return
    a = x.clamp(fmt.min, fmt.max).abs_()
    magic = magic_bits(a, fmt, layout).view(layout.dtype)
    out.copy_(a.add_(magic).sub_(magic))
    if fmt.signed:
        out.copysign_(x)


def _encode_floats(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = layout_of(x)
    a = x.clamp(fmt.min, fmt.max)
    if fmt in _CASTS and layout is _FP32:
        out.view(_CASTS[fmt]).copy_(a)
        return
    magic = magic_bits(a.abs_(), fmt, layout)
    codes = a.add_(magic.view(layout.dtype)).view(layout.integer).sub_(magic)
    # The magic number's fraction is zero: shifted, it is the exponent field at its place.
    offset = layout.exponent_bias + fmt.min_exponent + layout.fraction_bits - fmt.mantissa_bits
    field = magic.bitwise_right_shift_(layout.fraction_bits - fmt.mantissa_bits)
    codes.add_(field).sub_(offset << fmt.mantissa_bits)
    out.copy_(_with_sign(codes, x, fmt, layout))


def _exponent_codes(a: Tensor, fmt: Format, layout: Layout) -> Tensor:
    """Codes of magnitudes in a format without mantissa bits."""
    first = layout.exponent_bias + fmt.min_exponent  # the exponent field of code 1
    bits = a.view(layout.integer) - ((first - 1) << layout.fraction_bits)
    half = 1 << (layout.fraction_bits - 1)
    odd = (bits >> layout.fraction_bits).bitwise_and_(1)
    codes = odd.add_(bits).add_(half - 1).bitwise_right_shift_(layout.fraction_bits)
    # Between zero and the smallest number the middle is a power of two, not 1.5 times one.
    return torch.maximum(codes, bits.clamp_(0, 1))


def _round_exponents(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = layout_of(x)
    a = x.clamp(fmt.min, fmt.max).abs_()
    codes = _exponent_codes(a, fmt, layout)
    first = layout.exponent_bias + fmt.min_exponent
    bits = (codes + (first - 1)).bitwise_left_shift_(layout.fraction_bits)
    bits.mul_(codes.clamp_(max=1))  # code 0 is zero
    out.copy_(a.mul_(0.0).add_(bits.view(layout.dtype)))  # NaN stays
    if fmt.signed:
        out.copysign_(x)


def _encode_exponents(x: Tensor, fmt: Format, out: Tensor) -> None:
    layout = layout_of(x)
    a = x.clamp(fmt.min, fmt.max).abs_()
    out.copy_(_with_sign(_exponent_codes(a, fmt, layout), x, fmt, layout))


def _with_sign(codes: Tensor, x: Tensor, fmt: Format, layout: Layout) -> Tensor:
    """Put the sign bit of floats on top of the codes of their magnitudes, in place."""
    if not fmt.signed:
        return codes
    width = 1 + layout.exponent_mask.bit_length()
    sign = x.view(layout.integer) >> (width - fmt.bits)
    return codes.bitwise_or_(sign.bitwise_and_(1 << (fmt.bits - 1)))


def _round_integers(x: Tensor, fmt: Format, out: Tensor) -> None:
    # Two's complement has no negative zero: adding zero removes it.
    out.copy_(x.clamp(fmt.min, fmt.max).round_().add_(0.0))


def _encode_integers(x: Tensor, fmt: Format, out: Tensor) -> None:
    rounded = x.clamp(fmt.min, fmt.max).round_()
    if not fmt.signed:
        out.copy_(rounded)
        return
    out.view(torch.int8).copy_(rounded)
    out.bitwise_and_(2**fmt.bits - 1)


def encode_powers(x: Tensor, fmt: Format, out: Tensor, direction: Direction = "nearest") -> None:
    """Codes of positive numbers in a format of powers of two, in float64: E8M0 reaches below fp32.

    Nearest is in value, so the switch is at 1.5; that tie goes up, as ml_dtypes and torch cast.
    """
    if fmt in _CASTS and direction == "nearest" and x.dtype == torch.float32:
        out.copy_(x.clamp(fmt.min, fmt.max).to(_CASTS[fmt]).view(torch.uint8))
        if may_hold(x.amin() < 1.5 * fmt.min):  # torch 2.13 rounds fp32's subnormals up
            out.masked_fill_(x < 1.5 * fmt.min, 0)
        return
    one = 1 << _FP64.fraction_bits
    carry = {"nearest": one >> 1, "up": one - 1, "down": 0}[direction]
    bits = x.double().view(torch.int64).add(carry).bitwise_right_shift_(_FP64.fraction_bits)
    bits.sub_(_FP64.exponent_bias + fmt.min_exponent)
    out.copy_(bits.clamp_(0, fmt.max_exponent - fmt.min_exponent))


def _round_powers(x: Tensor, fmt: Format, out: Tensor) -> None:
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    encode_powers(x, fmt, codes)
    decode_chunk(codes, fmt, out)
    if may_hold(~(x.amin() > 0)):
        out.masked_fill_(~(x > 0), torch.nan)


def powers(codes: Tensor, fmt: Format) -> Tensor:
    """float64 powers of two of int64 codes, which are overwritten."""
    codes.add_(_FP64.exponent_bias + fmt.min_exponent)
    return codes.bitwise_left_shift_(_FP64.fraction_bits).view(torch.float64)


def _level_codes(x: Tensor, fmt: Format) -> Tensor:
    """Code of the nearest table value; a tie goes to the lower value."""
    assert fmt.levels is not None
    levels = torch.tensor(sorted(fmt.levels), dtype=x.dtype, device=x.device)
    order = torch.tensor(sorted(range(len(fmt.levels)), key=fmt.levels.__getitem__))
    middle = (levels[1:] + levels[:-1]) / 2
    rank = torch.bucketize(x.contiguous(), middle, out_int32=True)
    return order.to(x.device, torch.uint8).index_select(0, rank.view(-1)).view(x.shape)


def _encode_levels(x: Tensor, fmt: Format, out: Tensor) -> None:
    out.copy_(_level_codes(x, fmt))


def _round_levels(x: Tensor, fmt: Format, out: Tensor) -> None:
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    _encode_levels(x, fmt, codes)
    decode_chunk(codes, fmt, out)
    out.masked_fill_(x.isnan(), torch.nan)


def decode_chunk(codes: Tensor, fmt: Format, out: Tensor) -> None:
    """Values of uint8 codes, by arithmetic or a cast where one exists, else from the table."""
    if fmt.is_integer:
        if fmt.signed:
            sign = 1 << (fmt.bits - 1)
            codes = codes.view(torch.int8)
            codes = codes if fmt.bits == 8 else (codes ^ sign).sub_(sign)
        out.copy_(codes)
    elif fmt in _CASTS_BACK:
        out.copy_(codes.view(_CASTS_BACK[fmt]))
    elif codes.device.type == "cpu" and fits_half(fmt):
        _decode_as_half(codes, fmt, out)
    else:
        table = value_table(fmt, codes.device).to(out.dtype)
        out.copy_(table.index_select(0, codes.reshape(-1).int()).view(codes.shape))


def fits_half(fmt: Format) -> bool:
    """Whether finite codes are numbers of fp16, up to a power of two."""
    return 1 <= fmt.exponent_bits <= 4 and fmt.signed and fmt.top != "ieee"


def half_layout(fmt: Format) -> tuple[int, int, float]:
    """Shift and mask that move a code to fp16's places, and the power of two that is left over.

    The code stands at the left end of a signed byte and is widened to 16 bits: its sign then fills
    all bits down to the exponent; the shift moves the fields, the mask clears the copies of the sign.
    """
    mask = 0xFFFF & ~((1 << 15) - (1 << (10 + fmt.exponent_bits)))
    return 3 + fmt.exponent_bits, mask, 2.0 ** (15 - fmt.bias)


def _decode_as_half(codes: Tensor, fmt: Format, out: Tensor) -> None:
    """Through fp16, whose own subnormals do the rest: 1.5x faster than the table."""
    shift, mask, factor = half_layout(fmt)
    aligned = codes << (8 - fmt.bits) if fmt.bits < 8 else codes
    wide = aligned.view(torch.int8).to(torch.int16).mul_(1 << shift)
    wide.bitwise_and_(mask - (1 << 16))  # the mask as a signed number: its highest bit is set
    out.copy_(wide.view(torch.float16)).mul_(factor)
    if fmt.nan_code is not None and may_hold((codes & fmt.nan_code).amax() == fmt.nan_code):
        out.masked_fill_(codes & fmt.nan_code == fmt.nan_code, torch.nan)


def may_hold(condition: Tensor) -> bool:
    """Whether a rare case is there to be mended; a compiler, which cannot look, always mends it."""
    return torch.compiler.is_compiling() or bool(condition)


def value_table(fmt: Format, device: torch.device) -> Tensor:
    """float32 values of all codes of a format; shared, not to be written to."""
    return (_table if torch.compiler.is_compiling() else _shared_table)(fmt, device)


@lru_cache(maxsize=256)
def _shared_table(fmt: Format, device: torch.device) -> Tensor:
    return _table(fmt, device)


def _table(fmt: Format, device: torch.device) -> Tensor:
    return torch.tensor(fmt.values, dtype=torch.float64).to(device, torch.float32)
