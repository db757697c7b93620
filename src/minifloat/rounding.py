"""The only rounding code: numbers to the nearest value of a `Format`, to codes and back.

Special values: NaN stays NaN; Inf and all beyond `max` saturate, or, with `saturate=False`, become
what the format's top offers; -0 keeps its sign in signed floating-point formats. How a family of
formats rounds is said in `grids.py`.

CPU tensors are walked in chunks that fit the cache: 3-4x faster than whole-tensor temporaries.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.formats import Format
from minifloat.grids import (
    Direction,
    decode_chunk,
    encode_powers,
    grid_of,
    layout_of,
    magic_bits,
    may_hold,
    powers,
)
from minifloat.memory import empty

Rounding = Literal["nearest", "away", "stochastic"]

# Elements of a chunk: its few fp32 temporaries stay in the caches, and the twenty calls that each
# chunk costs weigh little. Half or a quarter of it is up to 1.5x slower on two Zen 4 cores.
CHUNK = 1 << 18


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
        UserError: NaN in a format that has no NaN; compiled code cannot look and gives any code.
    """
    if fmt.is_native:
        raise UserError(f"{fmt} is stored as its own dtype and has no codes")
    grid = grid_of(fmt)

    def chunk(part: Tensor, out: Tensor) -> None:
        grid.encode(part, fmt, out)
        if fmt.nan_code is not None and may_hold(part.amax().isnan()):
            out.masked_fill_(part.isnan(), fmt.nan_code)
        elif not torch.compiler.is_compiling() and bool(part.amax().isnan()):
            raise UserError(f"NaN cannot be written as {fmt}, which has no code for it")
        if not saturate and _has_overflow(fmt):
            _overflow_codes(part, fmt, out)

    return _chunked(chunk, x.to(layout_of(x).dtype), torch.uint8)


def decode(codes: Tensor, fmt: Format) -> Tensor:
    """The float32 values of uint8 codes, in their shape."""
    return _chunked(lambda part, out: decode_chunk(part, fmt, out), codes, torch.float32)


def round_power_of_two(x: Tensor, fmt: Format, direction: Direction) -> Tensor:
    """Positive numbers to the powers of two of a format: nearest in value, up (>= x) or down (<= x).

    Ties (1.5 times a power) go up, as ml_dtypes and torch cast to E8M0. Zero goes to the smallest.
    """
    codes = torch.empty(x.shape, dtype=torch.int64, device=x.device)
    encode_powers(x, fmt, codes, direction)
    return powers(codes, fmt).to(x.dtype)


def neighbours(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """The values of a format around each number: the last one at or below it and the next above.

    Beyond the range, and at its upper end, both are the end's value.
    """
    finite = sorted({value + 0.0 for value in fmt.values if math.isfinite(value)})
    values = torch.tensor(finite, dtype=x.dtype, device=x.device)
    above = torch.bucketize(x, values, right=True)
    low = values[(above - 1).clamp(min=0)]
    return low, torch.where(x < values[0], low, values[above.clamp(max=len(values) - 1)])


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
    if fmt.is_native:
        return _round_native(x, fmt)
    layout = layout_of(x)
    grid = grid_of(fmt)
    directed = rounding != "nearest" and not fmt.is_table and not fmt.is_power_of_two

    def chunk(part: Tensor, out: Tensor) -> None:
        grid.round(part, fmt, out)
        if directed:
            _reround(part, fmt, out, rounding, generator)
        if not saturate and _has_overflow(fmt):
            _overflow(part, fmt, out, rounding)

    return _chunked(chunk, x.to(layout.dtype), layout.dtype).to(x.dtype)


def _round_native(x: Tensor, fmt: Format) -> Tensor:
    dtypes = {5: torch.float16, 8: torch.bfloat16 if fmt.mantissa_bits == 7 else torch.float32}
    return x.clamp(fmt.min, fmt.max).to(dtypes[fmt.exponent_bits]).to(x.dtype)


def _chunked(function: Callable[[Tensor, Tensor], None], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply `function(part, out)` to cache-sized pieces of a CPU tensor, or to the whole elsewhere."""
    out = empty(x.shape, dtype, x.device)
    flat, flat_out = x.reshape(-1), out.view(-1)
    if not in_chunks(x) and flat.numel():
        function(flat, flat_out)
        return out
    for start in range(0, flat.numel(), CHUNK):
        function(flat[start : start + CHUNK], flat_out[start : start + CHUNK])
    return out


def in_chunks(x: Tensor) -> bool:
    """Whether to walk a tensor in pieces; a compiler makes its own, and would unroll ours."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _has_overflow(fmt: Format) -> bool:
    """Whether the top of a format offers NaN or Inf to what lies beyond; E8M0 saturates."""
    return fmt.top != "finite" and not fmt.is_power_of_two


def _overflow_codes(x: Tensor, fmt: Format, codes: Tensor) -> None:
    """Put NaN or Inf, as the top offers, where numbers round beyond the range."""
    special = round_to(x, fmt, saturate=False)
    if fmt.top == "nan":
        assert fmt.nan_code is not None
        codes.masked_fill_(special.isnan(), fmt.nan_code)
        return
    sign = (x < 0).to(torch.uint8) << (fmt.bits - 1)
    codes.copy_(torch.where(special.isinf(), sign | fmt.infinity_code, codes))


def _reround(
    x: Tensor, fmt: Format, out: Tensor, rounding: Rounding, generator: torch.Generator | None
) -> None:
    """Turn the nearest-even result into ties-away or stochastic rounding, exactly."""
    layout = layout_of(x)
    a = x.clamp(fmt.min, fmt.max).abs_()
    ulp = magic_bits(a, fmt, layout).sub_(layout.fraction_bits << layout.fraction_bits)
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
