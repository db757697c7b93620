"""Rows side by side: the order in which the CPU's kernels read codes and scales fastest.

A strip is 16 rows. Its units, the dwords of codes or the scales of groups, are stored unit by unit, each
for all 16 rows: [strips, units, 16]. So a register is filled with one unit of every row by one load, and
nothing is folded across lanes. It is a permutation of the bytes: memory is neither won nor lost, and a
tensor keeps its shape. Checkpoints are never in this order.
"""

import torch
from torch import Tensor

from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

LANES = 16
# Bytes that are permuted at once: the copy on the way is as large.
_PIECE = 1 << 20


def unit_size(bits: int) -> int:
    """Bytes of a unit of codes: 8 codes of 4 bits, else 4 codes."""
    return 3 if bits == 6 else 4


def suits(spec: LayerSpec, shape: tuple[int, int]) -> bool:
    """Whether a weight [R, C] divides into whole strips and units, with one zero point a row if any."""
    weight = spec.weight
    assert weight is not None
    codes = 8 if weight.format.bits == 4 else 4
    whole = shape[0] % LANES == 0 and shape[1] % codes == 0
    return whole and (weight.tile[0] == 1 or not weight.zero_point)


def interleave(x: Tensor, unit: int) -> None:
    """Put a tensor [R, W] of rows into strips of units, in place."""
    for part in _pieces(x):
        strips = part.clone().reshape(part.shape[0] // LANES, LANES, part.shape[1] // unit, unit)
        _strips(part, unit).copy_(strips.transpose(1, 2))


def rows_of(x: Tensor, unit: int) -> Tensor:
    """The rows [R, W] of an interleaved tensor, a copy."""
    rows = _strips(x, unit).transpose(1, 2)
    return rows.clone(memory_format=torch.contiguous_format).reshape(x.shape)


def in_rows(x: Tensor, unit: int) -> None:
    """The inverse of `interleave`, in place."""
    for part in _pieces(x):
        part.copy_(rows_of(part, unit))


def weight_in_rows(codes: Tensor, scale: Scale, spec: QuantSpec) -> tuple[Tensor, Scale]:
    """Copies of an interleaved weight's codes and scales, row by row."""
    stored, outer, zero = scale
    if spec.tile[0] == 1:
        stored, zero = rows_of(stored, 1), None if zero is None else rows_of(zero, 1)
    return rows_of(codes, unit_size(spec.format.bits)), Scale(stored, outer, zero)


def some_rows(x: Tensor, ids: Tensor, unit: int) -> Tensor:
    """Rows ids [N] of an interleaved tensor [R, W]: [N, W]."""
    return _strips(x, unit)[ids // LANES, :, ids % LANES].reshape(len(ids), x.shape[1])


def _strips(x: Tensor, unit: int) -> Tensor:
    return x.reshape(x.shape[0] // LANES, x.shape[1] // unit, LANES, unit)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    strips = max(1, _PIECE // max(1, x.shape[1] * x.element_size() * LANES))
    return torch.split(x, strips * LANES)
