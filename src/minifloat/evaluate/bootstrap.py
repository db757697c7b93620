"""Intervals by resampling: what a figure would have been with other images of the same kind."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 500
_MIDDLE = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def bootstrap(
    statistic: Callable[[Tensor], float],
    count: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A statistic of all rows, and the middle 95 % of what it is on rows drawn with replacement.

    Args:
        statistic: of row numbers int64 [count], some of them repeated.
        count: of rows.
        resamples: how many draws (Efron 1979).
        seed: of the draws; one seed draws the same rows for every model.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(count, (count,), generator=generator) for _ in range(resamples)]
    found = torch.tensor([statistic(rows) for rows in draws], dtype=torch.float64)
    low, high = found.quantile(_MIDDLE).tolist()
    return Interval(statistic(torch.arange(count)), low, high)


def of_mean(values: Tensor) -> Interval:
    """The mean of values [n]."""
    values = values.double()
    return bootstrap(lambda rows: float(values[rows].mean()), len(values))
