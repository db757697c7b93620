"""A quantized tensor: codes and scales by a spec, and the way there and back.

The law of this file: `fake_quantize(x) == decode(encode(x))` bit for bit, for every spec.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minifloat import rounding
from minifloat.errors import UserError
from minifloat.grids import decode_chunk, grid_of
from minifloat.memory import empty
from minifloat.scales import Scale, amax_range, fit, fit_asymmetric
from minifloat.spec import QuantSpec
from minifloat.tiles import as_matrix, by_row, expand, runs, split


@dataclass(frozen=True)
class QTensor:
    """A tensor as codes.

    Attributes:
        codes: uint8 [R, C], one code a byte (packing is `packing.pack`'s).
        scale: stored scales of its tiles.
        spec: how to read them.
        shape: shape of the tensor before it was seen as a matrix.
    """

    codes: Tensor
    scale: Scale
    spec: QuantSpec
    shape: tuple[int, ...]


def scale_of(x: Tensor, spec: QuantSpec, peaks: Tensor | None = None) -> Scale:
    """The scales that the largest magnitudes (or minimum and maximum) of the tiles of [R, C] ask.

    `peaks` are the tiles' largest magnitudes, where they are known already.
    """
    if spec.zero_point:
        return fit_asymmetric(x, spec)
    return fit(amax_range(x, spec) if peaks is None else peaks, spec)


def input_scale(x: Tensor, spec: QuantSpec, calibrated: Scale | None = None) -> Scale:
    """The scales of activations [R, C]: the calibrated ones, or those that x asks.

    Those of a dynamic spec are scaled in turn by the calibrated one, if there is one.
    """
    if calibrated is None:
        return scale_of(x, spec)
    return fit(amax_range(x, spec), spec, outer=calibrated.stored) if spec.dynamic else calibrated


def encode(x: Tensor, spec: QuantSpec, scale: Scale | None = None) -> QTensor:
    """Quantize a tensor [rows, ...] to codes, with scales of its own unless they are given.

    Raises:
        UserError: NaN or Inf in the tensor.
    """
    matrix = as_matrix(x).float()
    peaks = amax_range(matrix, spec)
    if not bool(peaks.isfinite().all()):
        raise UserError("the tensor holds NaN or Inf; mend the checkpoint before quantizing it")
    if scale is None:
        scale = scale_of(matrix, spec, peaks)
    codes = empty(matrix.shape, torch.uint8, matrix.device)
    write = grid_of(spec.format).encode
    for part, values, zero, out in _pieces(matrix, codes, spec, scale):
        write(_units(part, values, zero), spec.format, out)
    return QTensor(codes, scale, spec, tuple(x.shape))


def decode(q: QTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that the codes stand for, in its shape."""
    matrix = empty(q.codes.shape, torch.float32, q.codes.device)
    for codes, values, zero, out in _pieces(q.codes, matrix, q.spec, q.scale):
        decode_chunk(codes, q.spec.format, out)
        _scaled(out, values, zero)
    return matrix.reshape(q.shape).to(dtype)


def fake_quantize(x: Tensor, spec: QuantSpec, scale: Scale | None = None) -> Tensor:
    """Quantize and decode at once, in the shape and dtype of `x` [..., features].

    `scale` holds the tiles' scales or, under a dynamic spec, the scale of theirs (`input_scale`).
    Differentiable with respect to `x` by the straight-through estimator. NaN stays NaN.
    """
    matrix = x.reshape(-1, x.shape[-1]).float()
    scale = input_scale(matrix.detach(), spec, scale)
    if torch.is_grad_enabled() and x.requires_grad:
        return _straight_through(matrix, spec, scale).reshape(x.shape).to(x.dtype)
    rounded = empty(matrix.shape, torch.float32, matrix.device)
    to_grid = grid_of(spec.format).round
    for part, values, zero, out in _pieces(matrix, rounded, spec, scale):
        to_grid(_units(part, values, zero), spec.format, out)
        _scaled(out, values, zero)
    return rounded.reshape(x.shape).to(x.dtype)


def _straight_through(x: Tensor, spec: QuantSpec, scale: Scale) -> Tensor:
    """The same in whole tensors, which autograd can follow."""
    values = expand(scale.values(spec), x.shape, spec.tile)
    if scale.zero is None:
        return rounding.round_to(x / values, spec.format) * values
    zero = expand(scale.zero.float(), x.shape, spec.tile)
    units = x / values
    units = units + (units.round() - units).detach() + zero
    return (rounding.round_to(units, spec.format) - zero) * values


def _pieces(
    x: Tensor, out: Tensor, spec: QuantSpec, scale: Scale
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor]]:
    """Views [n, U, c] of a matrix and of its result, with the scales and zero points [n, U, 1]."""
    values = by_row(scale.values(spec), x.shape[0], spec.tile)
    zero = None if scale.zero is None else by_row(scale.zero.float(), x.shape[0], spec.tile)
    for rows, columns, tiles in runs(x, spec.tile):
        count = tiles.stop - tiles.start
        yield (
            split(x[rows, columns], count),
            values[rows, tiles, None],
            None if zero is None else zero[rows, tiles, None],
            split(out[rows, columns], count),
        )


def _units(x: Tensor, values: Tensor, zero: Tensor | None) -> Tensor:
    units = x / values
    return units if zero is None else units.round_().add_(zero)


def _scaled(units: Tensor, values: Tensor, zero: Tensor | None) -> None:
    if zero is not None:
        units.sub_(zero)
    units.mul_(values)
