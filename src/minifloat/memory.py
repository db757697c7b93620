"""New tensors on huge pages, what a process holds, and giving memory back.

A fresh tensor of many megabytes costs more in page faults than all the arithmetic of a format. numpy
asks the system for huge pages, which makes 512 times fewer of them; torch's allocator does not.
"""

import ctypes
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
# numpy asks for huge pages from 4 MiB on.
_LARGE = 1 << 22


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialized tensor; a large one of the CPU lies on huge pages."""
    size = dtype.itemsize
    for length in shape:
        size *= length
    if device.type == "cpu" and size >= _LARGE and not torch.compiler.is_compiling():
        return torch.from_numpy(np.empty(tuple(shape), _NUMPY[dtype]))
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def resident() -> int:
    """Bytes of this process in memory now; the most so far where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * resource.getpagesize()


def give_back() -> None:
    """Return freed memory to the system, where the C library can be asked to (glibc).

    It keeps freed pieces below 32 MiB for later and scatters new ones among them, so a process that
    frees a block of a model and loads the next one grows with every block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
