"""Weights behind each other on huge pages.

A token reads every weight once, and the processor has to find where each page of memory lies. On pages
of 2 MB in place of 4 KB that is a tenth less time for layers of less than a megabyte, which alone would
not get such pages.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minifloat.memory import empty, give_back

# Bytes that are asked for at once: what a copy of one layer takes along.
_ROOM = 32 << 20
_LINE = 64  # bytes of a line of the cache, which vectors must not straddle


class Arena:
    """Room for tensors of the CPU, taken piece by piece."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """A copy of tensors [.., *rest] of one dtype, behind each other along their first axis."""
        first = parts[0]
        shape = (sum(len(part) for part in parts), *first.shape[1:])
        place = self._take(math.prod(shape) * first.element_size())
        return torch.cat(list(parts), out=place.view(first.dtype).view(shape))

    def _take(self, size: int) -> Tensor:
        if self._used + size > self._room.numel():
            give_back()  # what has been copied would stay beside its copy
            self._room = empty((max(_ROOM, size + _LINE),), torch.uint8, torch.device("cpu"))
            self._used = -self._room.data_ptr() % _LINE
        place = self._room[self._used : self._used + size]
        self._used += -(-size // _LINE) * _LINE
        return place
