"""Learned rounding: every weight goes to one of its two neighbours, chosen by block reconstruction.

AdaRound (Nagel et al. 2020, arXiv 2004.10568) with BRECQ's block objective, on any grid: between the
neighbours l <= w <= u of a weight the soft weight is w(V) = l + h(V) (u - l), with the rectified
sigmoid h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). Adam lowers

    |f(x; w(V)) - target|^2 + lambda sum (1 - |2 h(V) - 1|^beta)

while beta falls and drives every h to 0 or 1. On a floating-point grid u - l is the step of the
weight's own binade, so equations 0.2 and 0.3 of the card are this file with E2M1. A weight beyond
the clip value has no second neighbour and gets no gradient.

Scale-aware rounding (FP4DiT, arXiv 2503.15465) learns V' = V (u - l), which under Adam is a learning
rate of its own for every weight, 1 / (u - l).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from minifloat import rounding
from minifloat.calibrate.walk import Pass, Window, Work, first_tensor
from minifloat.qtensor import QTensor, decode, encode
from minifloat.tiles import expand

_LOW, _HIGH = -0.1, 1.1  # the rectified sigmoid reaches beyond [0, 1] so that it can settle there


@dataclass(frozen=True)
class Annealing:
    """How the regularizer forces decisions: off at first, then with an exponent that falls linearly.

    Attributes:
        weight: of the regularizer's mean against the reconstruction error relative to nearest
            rounding's. Its gradient is nothing between the ends while beta is large, so it may
            be large; a small one leaves weights undecided, and deciding them costs more.
        warmup: share of the steps without it.
        start, end: beta.
    """

    weight: float = 100.0
    warmup: float = 0.2
    start: float = 20.0
    end: float = 2.0

    def beta(self, progress: float) -> float | None:
        """The exponent at a progress of 0 to 1; None during the warm-up."""
        if progress < self.warmup:
            return None
        share = (progress - self.warmup) / (1 - self.warmup)
        return self.start + (self.end - self.start) * share


class Rounder:
    """The rounding of one weight [out, in] as a variable."""

    def __init__(self, work: Work, *, scale_aware: bool) -> None:
        assert work.spec.weight is not None and work.scale is not None
        self.spec, self.scale = work.spec.weight, work.scale
        w = work.weight()
        scales = expand(self.scale.values(self.spec), w.shape, self.spec.tile)
        units = w / scales
        if self.scale.zero is not None:
            units = units + expand(self.scale.zero.float(), w.shape, self.spec.tile)
        self.low, self.high = rounding.neighbours(units, self.spec.format)
        gap = self.high - self.low
        # The last decision of a weight that has only one neighbour does not matter.
        share = torch.where(gap > 0, (units - self.low) / gap.clamp(min=1e-30), 0.5).clamp(0, 1)
        logits = -torch.log((_HIGH - _LOW) / (share - _LOW) - 1)
        self.unit = (gap * scales).clamp(min=1e-30) if scale_aware else torch.ones(())
        self.base = decode(
            QTensor(rounding.encode(self.low, self.spec.format), self.scale, self.spec, w.shape)
        )
        self.gap = gap * scales
        self.logits = (logits * self.unit).requires_grad_()

    def share(self) -> Tensor:
        """h(V) [out, in] in 0..1."""
        soft = torch.sigmoid(self.logits / self.unit)
        return (soft * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def quantized(self) -> QTensor:
        """Every weight at the neighbour that it leans to."""
        units = torch.where(self.logits.detach() >= 0, self.high, self.low)
        codes = rounding.encode(units, self.spec.format)
        return QTensor(codes, self.scale, self.spec, tuple(codes.shape))


def learn_rounding(
    *,
    steps: int = 500,
    lr: float = 3e-2,
    scale_aware: bool = False,
    annealing: Annealing | None = None,
    seed: int = 0,
) -> Pass:
    """Learned rounding of all layers of a window together; a step sees one calibration batch.

    An eighth of the batches is held out. Where rounding to nearest reconstructs them better, it stays.

    Args:
        steps: Adam's steps a window.
        lr: learning rate of V, or of V' where `scale_aware`.
        scale_aware: FP4DiT's parametrization.
        annealing: of the regularizer.
        seed: of the order of the batches.
    """
    annealing = annealing or Annealing()

    def apply(window: Window) -> None:
        for work in window.layers.values():
            assert work.spec.weight is not None
            work.q = encode(work.weight(), work.spec.weight, work.scale)
        if not window.layers:
            return
        batches, held_out = _hold_out(len(window.calls))
        floor = [_error(window, [index]) for index in range(len(window.calls))]
        rounders = {n: Rounder(w, scale_aware=scale_aware) for n, w in window.layers.items()}
        _descend(window, rounders, batches, floor, steps, lr, annealing, seed)
        nearest = {name: work.q for name, work in window.layers.items()}
        for name, work in window.layers.items():
            work.q = rounders[name].quantized()
        if _error(window, held_out) > sum(floor[index] for index in held_out):
            for name, work in window.layers.items():
                work.q = nearest[name]

    return apply


def _hold_out(count: int) -> tuple[list[int], list[int]]:
    """Batches to learn on and batches to judge on; a single batch serves for both."""
    last = max(1, count // 8)
    return list(range(count - last)) or [0], list(range(count - last, count))


def _descend(
    window: Window,
    rounders: dict[str, Rounder],
    batches: Sequence[int],
    floor: Sequence[float],
    steps: int,
    lr: float,
    annealing: Annealing,
    seed: int,
) -> None:
    """Adam on the soft weights of all layers; errors count relative to rounding to nearest."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([r.logits for r in rounders.values()], lr=lr, fused=True)
    count = sum(r.logits.numel() for r in rounders.values())
    with torch.enable_grad(), _frozen(window.block):
        for step in range(steps):
            index = batches[int(torch.randint(len(batches), (), generator=generator))]
            shares = {name: rounder.share() for name, rounder in rounders.items()}
            weights = {
                name: torch.addcmul(rounders[name].base, share, rounders[name].gap)
                for name, share in shares.items()
            }
            loss = _squared_error(window, index, weights) / max(floor[index], 1e-30)
            beta = annealing.beta(step / steps)
            if beta is not None:
                undecided = sum((1 - (2 * h - 1).abs().pow(beta)).sum() for h in shares.values())
                loss = loss + annealing.weight * undecided / count
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _squared_error(window: Window, index: int, weights: dict[str, Tensor]) -> Tensor:
    """Sum of squares of output minus target for one batch, with these weights [out, in]."""
    call = window.calls[index]
    named = {}
    for name, w in weights.items():
        own = name.removeprefix(window.name).removeprefix(".")
        weight = window.layers[name].module.weight
        named[f"{own}.weight" if own else "weight"] = w.view(weight.shape).to(weight.dtype)
    output = first_tensor(functional_call(window.block, named, call.args, call.kwargs))
    return (output - first_tensor(window.targets[index])).float().square().sum()


def _error(window: Window, batches: Sequence[int]) -> float:
    """The same with the weights as they are quantized now, over some batches."""
    weights = {name: work.quantized_weight() for name, work in window.layers.items()}
    return sum(float(_squared_error(window, index, weights)) for index in batches)


@contextmanager
def _frozen(block: nn.Module) -> Iterator[None]:
    """No gradients for the block's own parameters."""
    asking = [p for p in block.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
