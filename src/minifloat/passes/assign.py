"""Scales for every layer of a window, and rounding to nearest: the baseline of every method."""

from collections.abc import Sequence

import torch

from minifloat.calibrate.walk import Pass, Window
from minifloat.qtensor import encode, scale_of
from minifloat.scales import SHORT_GRID, search_scale


def assign_scales(*, search: bool = False, grid: Sequence[float] = SHORT_GRID) -> Pass:
    """Fix every weight's scales: the largest magnitude, or the clip of least squared error.

    The search weighs a column's error by the second moment of its input, where Hessians are known.
    """

    def apply(window: Window) -> None:
        for work in window.layers.values():
            spec = work.spec.weight
            assert spec is not None
            w = work.weight()
            if not search or spec.zero_point:
                work.scale = scale_of(w, spec)
                continue
            moment = None
            if work.hessian is not None:
                moment = work.hessian.value.diagonal().clamp(min=0)
            work.scale = search_scale(w, spec, grid, weight=moment)

    return apply


def collect() -> Pass:
    """Count the inputs of every layer, for the passes and figures that need a Hessian."""
    return lambda window: window.collect_hessians()


@torch.no_grad()
def _round(window: Window) -> None:
    for work in window.layers.values():
        assert work.spec.weight is not None
        work.q = encode(work.weight(), work.spec.weight, work.scale)


def round_to_nearest() -> Pass:
    """Every weight to its nearest code."""
    return _round
