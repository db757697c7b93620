"""What the host knows of a device: what it multiplies, how wide it is, and tables that lie on it."""

from functools import cache, lru_cache

import torch
from torch import Tensor


@cache
def device_of(device: torch.device) -> tuple[bool, int]:
    """Whether it multiplies FP8, and its multiprocessors; Triton's interpreter does and has one."""
    if device.type != "cuda":
        return True, 1
    found = torch.cuda.get_device_properties(device)
    return (found.major, found.minor) >= (8, 9), found.multi_processor_count


@lru_cache(maxsize=256)
def table_on(values: tuple[float, ...] | None, device: torch.device) -> Tensor | None:
    """What codes stand for, where they are looked up."""
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device)
