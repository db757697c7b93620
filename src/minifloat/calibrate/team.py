"""Several processes that calibrate one model together, each on its share of the batches.

Statistics and gradients are summed, so that every process comes to the same decisions; layers that can
be solved alone are dealt out and their codes sent round. `torchrun` starts the processes, on one
machine or many; one process alone is a team too, and for it every method below does nothing.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

from minifloat.errors import UserError

Item = TypeVar("Item")
_PATIENCE = timedelta(hours=4)  # blocks may take long, and one of the team may evaluate alone


class Team:
    """This process among `size` ones.

    Attributes:
        rank: its number, 0 for the one that writes files and talks.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @staticmethod
    def join(device: str) -> "Team":
        """The team that torchrun has started, if it has."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return Team()
        backend = "nccl" if device.startswith("cuda") else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not distributed.is_initialized():
            distributed.init_process_group(backend, timeout=_PATIENCE)
        return Team(distributed.get_rank(), size)

    def leave(self) -> None:
        """Wait for the others and end the team."""
        if self.size > 1 and distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a sequence.

        Raises:
            UserError: there are fewer items than processes.
        """
        if len(items) < self.size:
            raise UserError(f"{len(items)} calibration samples cannot be shared by {self.size}")
        return items[self.rank :: self.size]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(x)
        return x

    def least(self, x: Tensor) -> Tensor:
        """The smallest of every element over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(x, distributed.ReduceOp.MIN)
        return x

    def total(self, value: float) -> float:
        """The sum of a number over all processes."""
        return float(self.sum(torch.tensor(value, dtype=torch.float64))) if self.size > 1 else value

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows [N, features], in the order of their ranks."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        longest = int(self.sum(counts).max())
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(found, padded)
        return torch.cat([part[:n] for part, n in zip(found, counts.tolist(), strict=True)])

    def mine(self, index: int) -> bool:
        """Whether the piece of work number `index` is this process's."""
        return index % self.size == self.rank

    def send_round(self, index: int, x: Tensor) -> Tensor:
        """What the process that had the piece of work `index` has in `x`, in place for the others."""
        if self.size > 1:
            distributed.broadcast(x, index % self.size)
        return x


ALONE = Team()
