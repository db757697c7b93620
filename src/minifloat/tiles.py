"""A matrix as tiles that share a scale, and as runs of rows that fit the cache.

R, C are a matrix's rows and columns; a tile is (rows, columns) with -1 for a whole axis; T and U are
the tiles along each axis, of which the last may be smaller.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minifloat.rounding import CHUNK, in_chunks


def as_matrix(x: Tensor) -> Tensor:
    """A weight [out, ...] as [out, rest]; an activation [..., features] as [tokens, features]."""
    return x.reshape(x.shape[0], -1) if x.ndim != 1 else x.reshape(1, -1)


def tiled(x: Tensor, tile: tuple[int, int]) -> Tensor:
    """A matrix [R, C] as [T, r, U, c]; a ragged end is filled with zeros."""
    rows, columns = x.shape
    r = rows if tile[0] == -1 else min(tile[0], rows)
    c = columns if tile[1] == -1 else min(tile[1], columns)
    pad = (-columns % c, -rows % r)
    if any(pad):
        x = torch.nn.functional.pad(x, (0, pad[0], 0, pad[1]))
    return x.reshape(x.shape[0] // r, r, x.shape[1] // c, c)


def expand(values: Tensor, shape: Sequence[int], tile: tuple[int, int]) -> Tensor:
    """One value a tile [T, U] to one an element [R, C]."""
    return _along(_along(values, 0, tile[0], shape[0]), 1, tile[1], shape[1])


def by_row(values: Tensor, rows: int, tile: tuple[int, int]) -> Tensor:
    """One value a tile [T, U] to one for every row of it [R, U]."""
    return _along(values, 0, tile[0], rows)


def _along(values: Tensor, axis: int, size: int, length: int) -> Tensor:
    if size == 1:
        return values
    if size != -1:
        return values.repeat_interleave(size, axis).narrow(axis, 0, length)
    shape = list(values.shape)
    shape[axis] = length
    return values.expand(shape)


def runs(x: Tensor, tile: tuple[int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Cut a matrix [R, C] into pieces that fit the cache (on the CPU) and hold whole tiles of a row.

    Yields slices of the rows, of the columns and of the tiles along a row. All tiles of a piece have
    one width: a ragged last tile is a piece of its own.
    """
    columns = x.shape[1]
    width = columns if tile[1] == -1 else min(tile[1], columns)
    whole = columns // max(1, width)
    for piece in _pieces(x):
        if whole:
            yield piece, slice(0, whole * width), slice(0, whole)
        if whole * width < columns:
            yield piece, slice(whole * width, columns), slice(whole, whole + 1)


def _pieces(x: Tensor) -> Iterator[slice]:
    rows, columns = x.shape
    if not in_chunks(x):
        yield slice(0, rows)
        return
    step = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def split(x: Tensor, tiles: int) -> Tensor:
    """A piece [n, columns] as [n, U, c], a view."""
    return x.unflatten(1, (tiles, x.shape[1] // tiles))  # type: ignore[no-any-return, no-untyped-call]
