"""LoRC: a low-rank branch that takes up what quantization left (ZeroQuant-V2, arXiv 2303.08302).

E = W - W_hat with the *original* weight (card 1e), E ~ up down by its leading singular vectors, the
singular values split evenly by their square root (card 1b.4).
"""

import torch
from torch import Tensor

from minifloat.calibrate.walk import Pass, Window
from minifloat.errors import UserError

# Beyond this smaller side, randomised SVD (Halko et al. 2011) is many times faster and as good.
_EXACT_BELOW = 1024


def low_rank(error: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The factors (up [O, rank], down [rank, I]) of the best approximation of an error [O, I]."""
    rank = min(rank, *error.shape)
    if min(error.shape) <= _EXACT_BELOW:
        u, s, vh = torch.linalg.svd(error, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(error, q=min(rank + 16, *error.shape), niter=4)
        u, s, vh = u[:, :rank], s[:rank], v.T[:rank]
    root = s.sqrt()
    return u * root, root[:, None] * vh


def compensate(rank: int) -> Pass:
    """Give every layer of the window a low-rank branch; rank 0 gives none."""
    if rank < 0:
        raise UserError(f"a rank is 0 or more, not {rank}")

    def apply(window: Window) -> None:
        if rank == 0:
            return
        for work in window.layers.values():
            work.low_rank = low_rank(work.weight() - work.quantized_weight(), rank)

    return apply
