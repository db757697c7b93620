"""Activations between blocks: kept in memory up to a budget, in mapped files beyond it."""

import shutil
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor


class Stream:
    """A list of tensors, one a batch, that spills to disk above `budget` bytes.

    Files live in a temporary folder that goes when the stream does.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._items: list[Tensor] = []
        self._folder: Path | None = None

    def append(self, x: Tensor) -> None:
        x = x.detach()
        size = x.numel() * x.element_size()
        if self._used + size > self._budget:
            self._items.append(self._mapped(len(self._items), x))
        else:
            self._used += size
            self._items.append(x.clone())

    def _mapped(self, index: int, x: Tensor) -> Tensor:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="minifloat-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = str(self._folder / f"{index}.bin")
        file = torch.from_file(path, shared=True, size=x.numel(), dtype=x.dtype).view(x.shape)
        return file.copy_(x)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor:
        return self._items[index]

    def __setitem__(self, index: int, x: Tensor) -> None:
        """Overwrite in place: a block's output takes the room of its input."""
        self._items[index].copy_(x.detach())

    @property
    def spilled(self) -> bool:
        """Whether any tensor lies on disk."""
        return self._folder is not None
