"""Times on a CUDA device, without what Python and launches cost."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Bytes to rotate among: several times the cache of an H200 (50 MB).
ROTATE = 256 << 20


def copies(size: int) -> int:
    """How many operands of so many bytes to rotate among."""
    return min(64, max(2, ROTATE // size))


def microseconds(
    calls: Sequence[Callable[[Tensor], object]], x: Tensor, replays: int = 20
) -> float:
    """Of one call: the best replay of a graph of all of them, over their number."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:  # compiles, and fills the caches of the host
            call(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call(x)
    return min(elapsed(graph.replay) for _ in range(replays)) / len(calls)


def elapsed(run: Callable[[], object]) -> float:
    """Microseconds on the device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))


def bandwidth() -> float:
    """Bytes a microsecond: the best of a sum, which reads, and a copy, which reads and writes."""
    big = torch.ones(1 << 29, device="cuda")
    other = torch.empty_like(big)
    size = big.numel() * big.element_size()
    best = 0.0
    for _ in range(10):
        best = max(best, size / elapsed(big.sum), 2 * size / elapsed(lambda: other.copy_(big)))
    return best
