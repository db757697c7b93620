"""Scales: the range of a tile, and the stored number that it becomes.

R, C are a matrix's rows and columns, T and U the tiles along them. A range is a clip value c per tile
(card 0.2: choosing c is choosing a real exponent bias); `fit` turns it into the scale s = c / max as
it is stored: rounded to the scale's format, kept positive (an all-zero tile gets the smallest
scale, so nothing divides by zero), and with an outer scale where the spec has one.

Sources: percentile clipping; the 111-point MSE search of Kuzmin et al. (arXiv 2208.09225), here over
formats as well; power-of-two rules M1 and M2 of ZeroQuant-FP (arXiv 2307.09782): M1 is an E8M0
scale rounded up, M2 a `POW4` ratio under one real scale a row.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.formats import Format
from minifloat.grids import Direction
from minifloat.rounding import decode, encode, round_power_of_two, round_to
from minifloat.spec import QuantSpec
from minifloat.tiles import by_row, expand, runs, split, tiled

# Shrink factors of the reference search: 111 points from 0.1 to 1.2 of the largest magnitude.
FULL_GRID = tuple(0.1 + 0.01 * i for i in range(111))
# Coarse optima that a search from coarse to fine follows: at 8 bits errors are bumpy functions of the
# clip value, with period 2 in it where the binades are.
_BASINS = 3
# Where the optimum lies for 4-bit groups and channels; above 1 lets NVFP4 put its maximum on 4.
SHORT_GRID = tuple(0.5 + 0.025 * i for i in range(41))


class Scale(NamedTuple):
    """Stored scales of a matrix.

    Attributes:
        stored: [T, U] in the scale's native dtype, or uint8 codes of its format.
        outer: stored scales of the scales, or None.
        zero: [T, U] uint8 zero points, or None.
    """

    stored: Tensor
    outer: Tensor | None = None
    zero: Tensor | None = None

    def values(self, spec: QuantSpec) -> Tensor:
        """float32 [T, U]: what the codes of each tile are multiplied by."""
        fmt = spec.scale_format
        inner = self.stored.float() if fmt.is_native else decode(self.stored, fmt)
        if spec.outer is None or self.outer is None:
            return inner
        return inner * expand(self.outer.float(), inner.shape, spec.outer.tile)


def amax_range(x: Tensor, spec: QuantSpec) -> Tensor:
    """The largest magnitude of each tile of [R, C], as [T, U]; NaN and Inf show in it."""
    x = x.float()
    peaks = torch.zeros(x.shape[0], spec.tiles((x.shape[0], x.shape[1]))[1], device=x.device)
    for rows, columns, tiles in runs(x, spec.tile):
        piece = split(x[rows, columns], tiles.stop - tiles.start)
        peaks[rows, tiles] = piece.abs().amax(2)
    return tiled(peaks, (spec.tile[0], 1)).amax((1, 3))


def percentile_range(x: Tensor, spec: QuantSpec, percentile: float) -> Tensor:
    """The given percentile (0 to 100) of the magnitudes of each tile, as [T, U]."""
    if not 0 < percentile <= 100:
        raise UserError(f"a percentile lies in (0, 100], not {percentile}")
    parts = tiled(x.float(), spec.tile).abs().transpose(1, 2).flatten(2)
    rank = max(1, round(percentile / 100 * parts.shape[2]))
    return parts.kthvalue(rank, dim=2).values


def search_scale(
    x: Tensor,
    spec: QuantSpec,
    grid: Sequence[float] = SHORT_GRID,
    *,
    weight: Tensor | None = None,
    coarse: int = 1,
    outer: Tensor | None = None,
) -> Scale:
    """The scales of least squared error over a grid of shrink factors of each tile's maximum.

    Args:
        x: matrix [R, C].
        spec: its spec; errors are taken with the scale as it will be stored.
        grid: factors of the largest magnitude.
        weight: importance of the columns [C], such as the diagonal of a Hessian.
        coarse: look at every so many factors first, then at all around each tile's best.
        outer: a given scale of the scales; that of the maxima if None.

    Returns:
        Scales, never worse than those of the plain maximum if the grid holds 1.
    """
    x = x.float()
    amax = amax_range(x, spec)
    outer = fit(amax, spec).outer if outer is None else outer
    factors = torch.tensor(grid, device=x.device)

    def errors(choices: Tensor) -> Tensor:
        """Those of some factors [n, T, U or 1, 1] for each tile: [n, T, U]."""
        clips = [amax * factors[choice] for choice in choices]
        return _squared_errors(x, spec, [fit(c, spec, outer=outer) for c in clips], weight)

    tried = torch.arange(0, len(grid), coarse, device=x.device)[:, None, None]
    found = errors(tried)
    tried = tried.expand_as(found)
    if coarse > 1:
        best = found.topk(min(_BASINS, len(found)), 0, largest=False).indices
        around = torch.arange(1 - coarse, coarse, device=x.device)
        around = around[around != 0][:, None, None, None]
        near = (tried.gather(0, best) + around).clamp(0, len(grid) - 1).flatten(0, 1)
        tried, found = torch.cat([tried, near]), torch.cat([found, errors(near)])
    best = tried.gather(0, found.argmin(0, keepdim=True))[0]
    return fit(amax * factors[best], spec, outer=outer)


def _squared_errors(
    x: Tensor, spec: QuantSpec, options: Sequence[Scale], weight: Tensor | None
) -> Tensor:
    """Sums of squared errors [options, T, U] of a matrix under several scales."""
    values = [by_row(option.values(spec), x.shape[0], spec.tile) for option in options]
    losses = torch.zeros(len(values), *values[0].shape, device=x.device)
    for rows, columns, tiles in runs(x, spec.tile):  # a piece stays in the cache for all options
        piece = split(x[rows, columns], tiles.stop - tiles.start)
        importance = None if weight is None else weight.float()[columns].reshape(piece.shape[1:])
        for scales, loss in zip(values, losses, strict=True):
            scale = scales[rows, tiles, None]
            units = piece / scale
            error = round_to(units, spec.format).sub_(units).mul_(scale).square_()
            if importance is not None:
                error *= importance
            torch.sum(error, 2, out=loss[rows, tiles])
    return torch.stack([tiled(loss, (spec.tile[0], 1)).sum((1, 3)) for loss in losses])


def choose_format(
    x: Tensor,
    spec: QuantSpec,
    candidates: Sequence[Format],
    grid: Sequence[float] = FULL_GRID,
    *,
    moment: Tensor | None = None,
    coarse: int = 1,
) -> tuple[QuantSpec, Scale]:
    """The format and scales with the least error: formats x grid (card 1b, step 1).

    Args:
        x: matrix [R, C].
        spec: all but the format.
        candidates: formats.
        grid: factors of the largest magnitude.
        moment: M [C, C] of what multiplies the columns, to take tr(E M E^T) for the error E and not
            its sum of squares: the error of a product. The search then weighs columns by the
            diagonal. Clipping shrinks the largest numbers together, which no diagonal sees, so
            each format's optimum and its unclipped scales meet in the full error.
        coarse: as in `search_scale`.
    """
    diagonal = None if moment is None else moment.diagonal().clamp(min=0)
    best: tuple[float, QuantSpec, Scale] | None = None
    for fmt in candidates:
        option = replace(spec, format=fmt)
        finalists = [search_scale(x, option, grid, weight=diagonal, coarse=coarse)]
        if moment is not None:
            finalists.append(fit(amax_range(x, option), option))
        for found in finalists:
            error = _error(x, option, found, moment)
            if best is None or error < best[0]:
                best = (error, option, found)
    if best is None:
        raise UserError("choosing a format needs at least one candidate")
    return best[1], best[2]


def _error(x: Tensor, spec: QuantSpec, scale: Scale, moment: Tensor | None) -> float:
    """Sum of squares of the rounding error E, or tr(E M E^T)."""
    if moment is None:
        return float(_squared_errors(x.float(), spec, [scale], None).sum())
    values = expand(scale.values(spec), x.shape, spec.tile)
    error = round_to(x.float() / values, spec.format) * values - x
    return float(((error @ moment) * error).sum())


def fit(clip: Tensor, spec: QuantSpec, *, outer: Tensor | None = None) -> Scale:
    """Stored scales for symmetric clip values [T, U]; `outer` fixes the outer scale."""
    raw = clip.double() / spec.format.max
    fmt = spec.scale_format
    if spec.outer is None:
        return Scale(_store(raw, clip, spec, fmt))
    raw = raw.float().double()  # as the outer scale is stored: the largest ratio is exactly 1
    if outer is None:
        peak = amax_range(raw, spec.outer).double() / fmt.max
        outer = _store_real(peak, spec.outer.scale_format)
    ratio = raw / expand(outer.double(), raw.shape, spec.outer.tile)
    return Scale(_store(ratio, ratio * spec.format.max, spec, fmt), outer)


def fit_asymmetric(x: Tensor, spec: QuantSpec) -> Scale:
    """Scales and zero points from the minimum and maximum of each tile (0 is always inside)."""
    parts = tiled(x.float(), spec.tile)
    low = parts.amin((1, 3)).clamp(max=0)
    high = parts.amax((1, 3)).clamp(min=0)
    raw, outer = (high - low).double() / spec.format.max, None
    if spec.outer is not None:
        outer = _asymmetric_outer(torch.maximum(high, -low), raw, spec, spec.outer)
        raw = raw / expand(outer.double(), raw.shape, spec.outer.tile)
    stored = _store(raw, raw * spec.format.max, spec, spec.scale_format)
    scale = Scale(stored, outer).values(spec)
    zero = (-low / scale).round().clamp(0, spec.format.max).to(torch.uint8)
    return Scale(stored, outer, zero)


def _asymmetric_outer(peak: Tensor, raw: Tensor, spec: QuantSpec, outer: QuantSpec) -> Tensor:
    """The stored scale of the scales: the largest is their format's largest, or, where they are integers
    (QoQ, arXiv 2405.04532), the largest weight is the protected range's end."""
    integers = spec.scale_format.is_integer
    ends = peak / protected_range(spec.format) if integers else raw / spec.scale_format.max
    return _store_real(amax_range(ends, outer).double(), outer.scale_format)


@cache
def protected_range(fmt: Format) -> int:
    """The most that weights may be, in units of their outer scale, under integer scales and zero points.

    Every code less its zero point z times its scale s is then an INT8, which a product of INT8 takes:
    s is at most (high - low) / top + 1/2 and z at least -low / s - 1/2, so that (top - z) s is at most
    high + (top + s) / 2. QoQ's range for 4 bits, 119, holds for codes that the range's own weights
    round to; here all codes are meant, for GPTQ moves weights beyond it. An outer scale may be rounded.
    """
    top, slack = int(fmt.max), 1 + 2.0**-8
    for peak in range(127, 0, -1):
        widest = max(1, round(2 * slack * peak / top))
        if slack * peak + (top + widest) / 2 <= 127:
            return peak
    raise UserError(f"integer scales need codes of fewer bits than {fmt}")


def _store(raw: Tensor, clip: Tensor, spec: QuantSpec, fmt: Format) -> Tensor:
    """Real scales as the dtype or the codes of their format, by the spec's rounding rule."""
    if fmt.is_native:
        return _store_real(raw, fmt)
    if not fmt.is_power_of_two:
        return encode(raw.clamp(min=fmt.step), fmt)
    direction: Direction = "nearest"
    if spec.scale_rounding == "ocp":  # exact in the magnitude itself, not in the quotient
        raw, direction = torch.ldexp(clip.double(), torch.tensor(-spec.format.max_exponent)), "down"
    elif spec.scale_rounding in ("up", "down"):
        direction = spec.scale_rounding
    return encode(round_power_of_two(raw.clamp(min=fmt.min), fmt, direction), fmt)


def _store_real(raw: Tensor, fmt: Format) -> Tensor:
    """Real scales as fp32, fp16 or bf16, kept within the normal numbers."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[fmt.name]
    tiny = 2.0**fmt.min_exponent
    return raw.clamp(tiny, fmt.max).to(dtype)
