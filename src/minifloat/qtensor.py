"""A quantized tensor: codes and scales by a spec, and the way there and back.

The law of this file: `fake_quantize(x) == decode(encode(x))` bit for bit, for every spec.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minifloat import rounding
from minifloat.errors import UserError
from minifloat.scales import Scale, amax_range, as_matrix, expand, fit, fit_asymmetric
from minifloat.spec import QuantSpec


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


def scale_of(x: Tensor, spec: QuantSpec) -> Scale:
    """The scales that the largest magnitudes (or minimum and maximum) of the tiles of [R, C] ask."""
    if spec.zero_point:
        return fit_asymmetric(x, spec)
    return fit(amax_range(x, spec), spec)


def encode(x: Tensor, spec: QuantSpec, scale: Scale | None = None) -> QTensor:
    """Quantize a tensor [rows, ...] to codes, with scales of its own unless they are given.

    Raises:
        UserError: NaN or Inf in the tensor.
    """
    if not bool(torch.isfinite(x).all()):
        raise UserError("the tensor holds NaN or Inf; mend the checkpoint before quantizing it")
    matrix = as_matrix(x).float()
    scale = scale_of(matrix, spec) if scale is None else scale
    units = _divide(matrix, scale.values(spec), spec.tile)
    if scale.zero is not None:
        units = units.round() + expand(scale.zero.float(), matrix.shape, spec.tile)
    return QTensor(rounding.encode(units, spec.format), scale, spec, tuple(x.shape))


def decode(q: QTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The tensor that the codes stand for, in its shape."""
    units = rounding.decode(q.codes, q.spec.format)
    if q.scale.zero is not None:
        units = units - expand(q.scale.zero.float(), units.shape, q.spec.tile)
    return _multiply(units, q.scale.values(q.spec), q.spec.tile).reshape(q.shape).to(dtype)


def fake_quantize(x: Tensor, spec: QuantSpec, scale: Scale | None = None) -> Tensor:
    """Quantize and decode at once, in the shape and dtype of `x` [..., features].

    Differentiable with respect to `x` by the straight-through estimator. NaN stays NaN.
    """
    matrix = x.reshape(-1, x.shape[-1]).float()
    if scale is None:
        scale = scale_of(matrix.detach(), spec)
    values = scale.values(spec)
    units = _divide(matrix, values, spec.tile)
    if scale.zero is not None:
        zero = expand(scale.zero.float(), matrix.shape, spec.tile)
        units = rounding.round_to(units.round() + zero, spec.format) - zero
    else:
        units = rounding.round_to(units, spec.format)
    return _multiply(units, values, spec.tile).reshape(x.shape).to(x.dtype)


def _divide(x: Tensor, scale: Tensor, tile: tuple[int, int]) -> Tensor:
    return x / expand(scale, x.shape, tile)


def _multiply(units: Tensor, scale: Tensor, tile: tuple[int, int]) -> Tensor:
    return units * expand(scale, units.shape, tile)
