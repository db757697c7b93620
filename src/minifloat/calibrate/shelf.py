"""Where activations wait between blocks: in memory up to a budget, in mapped files beyond it."""

import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Shelf:
    """Keeps tensors for as long as somebody refers to them, `budget` bytes of them in memory.

    A file loses its name as soon as it is mapped, so the disk gets its room back with the tensor's
    end, also after a kill.
    """

    def __init__(self, budget: int) -> None:
        self._left = budget
        self.spilled = 0  # bytes that went to disk

    def keep(self, outputs: Any) -> Any:
        """The same tensor, tuple or list of tensors, on disk where memory is used up."""
        return tree_map_only(Tensor, self._keep, outputs)

    def _keep(self, x: Tensor) -> Tensor:
        x = x.detach()
        size = x.numel() * x.element_size()
        if size > self._left and size:
            self.spilled += size
            return _mapped(x)
        self._left -= size
        weakref.finalize(x, self._give_back, size)
        return x

    def _give_back(self, size: int) -> None:
        self._left += size


def _mapped(x: Tensor) -> Tensor:
    """A copy of a tensor in a file of its own; a full disk raises OSError here and not later."""
    size = x.numel() * x.element_size()
    handle, path = tempfile.mkstemp(prefix="minifloat-")
    reserve = getattr(os, "posix_fallocate", lambda file, start, length: os.truncate(file, length))
    try:
        reserve(handle, 0, size)  # writing to a mapped hole on a full disk would kill the process
        file = torch.from_file(path, shared=True, size=x.numel(), dtype=x.dtype)
    finally:
        os.close(handle)
        Path(path).unlink()
    return file.view(x.shape).copy_(x)
