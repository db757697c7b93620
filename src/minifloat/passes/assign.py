"""Scales for every layer of a window, and rounding to nearest: the baseline of every method."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minifloat.calibrate.walk import Pass, Window
from minifloat.models.fused import fused_groups
from minifloat.qtensor import encode, scale_of
from minifloat.scales import SHORT_GRID, amax_range, fit, search_scale


def assign_scales(*, search: bool = False, grid: Sequence[float] = SHORT_GRID) -> Pass:
    """Fix every weight's scales: the largest magnitude, or the clip of least squared error.

    The search weighs a column's error by the second moment of its input, where Hessians are known.
    """

    def apply(window: Window) -> None:
        outers = _shared_outers(window)
        for name, work in window.layers.items():
            spec = work.spec.weight
            assert spec is not None
            w, outer = work.weight(), outers.get(name)
            if outer is not None and not search:
                work.scale = fit(amax_range(w, spec), spec, outer=outer)
                continue
            if not search or spec.zero_point:
                work.scale = scale_of(w, spec)
                continue
            moment = None
            if work.hessian is not None:
                moment = work.hessian.value.diagonal().clamp(min=0)
            work.scale = search_scale(w, spec, grid, weight=moment, outer=outer)

    return apply


def _shared_outers(window: Window) -> dict[str, Tensor]:
    """One outer scale, the largest, for layers that engines compute as one and keep one of."""
    found: dict[str, Tensor] = {}
    for members in fused_groups(window.layers).values():
        specs = {window.layers[name].spec.weight for name in members}
        spec = specs.pop()
        if specs or spec is None or spec.outer is None or spec.outer.tile != (-1, -1):
            continue
        weights = [window.layers[name].weight() for name in members]
        outers = [fit(amax_range(w, spec), spec).outer for w in weights]
        found |= dict.fromkeys(members, torch.stack([o for o in outers if o is not None]).amax(0))
    return found


def collect(enough: int = 64) -> Pass:
    """Count the inputs of every layer, for the passes and figures that need a Hessian.

    An expert that fewer than `enough` tokens reach is calibrated on its weights alone, and the ledger
    says so: the second moment of a few tokens is mostly zero, and errors would hide there.
    """
    return lambda window: window.collect_hessians(enough)


@torch.no_grad()
def _round(window: Window) -> None:
    for work in window.layers.values():
        assert work.spec.weight is not None
        work.q = encode(work.weight(), work.spec.weight, work.scale)


def round_to_nearest() -> Pass:
    """Every weight to its nearest code."""
    return _round
