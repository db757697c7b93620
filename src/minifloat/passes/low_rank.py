"""LoRC: a low-rank branch that takes up what quantization left (ZeroQuant-V2, arXiv 2303.08302).

E = W - W_hat with the *original* weight (card 1e), E ~ up down by its leading singular vectors, the
singular values split evenly by their square root (card 1b.4).
"""

import torch
from torch import Tensor

from minifloat.calibrate.walk import Pass, Window
from minifloat.errors import UserError

# Beyond this smaller side, randomised SVD (Halko et al. 2011) is many times faster and as good.
_EXACT_BELOW = 2048


def low_rank(error: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The factors (up [O, rank], down [rank, I]) of the best approximation of an error [O, I]."""
    rank = min(rank, *error.shape)
    if min(error.shape) > _EXACT_BELOW:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            u, s, v = torch.svd_lowrank(error, q=min(rank + 16, *error.shape), niter=4)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, root[:, None] * v.T[:rank]
    if error.shape[0] > error.shape[1]:
        up, down = low_rank(error.T, rank)
        return down.T, up.T
    # The left singular vectors are the eigenvectors of E E^T: 10x faster than an SVD of E, and in
    # float64 exact enough for the few largest.
    wide = error.double()
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    u = vectors[:, -rank:].flip(1)
    root = squares[-rank:].flip(0).clamp(min=1e-30).sqrt().sqrt()
    return (u * root).float(), ((u.T @ wide) / root[:, None]).float()


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
