"""A weight's rounding as a variable: soft weights between two neighbours, and their gradients.

Between the neighbours l <= w <= u of a weight the soft weight is w(V) = l + h(V) (u - l), with the
rectified sigmoid h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1). On a floating-point grid u - l is the step of
the weight's own binade, so equations 0.2 and 0.3 of the card are this file with E2M1. A weight
beyond the clip value has no second neighbour and gets no gradient.

Scale-aware rounding (FP4DiT, arXiv 2503.15465) learns V' = V (u - l), which under Adam is a learning
rate of its own for every weight, 1 / (u - l).

Gradients are written out and not left to autograd: a weight costs a dozen operations a step, which in
pieces that stay in the cache take a third of the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minifloat import rounding
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import QuantSpec
from minifloat.tiles import expand

_LOW, _HIGH = -0.1, 1.1  # the rectified sigmoid reaches beyond [0, 1] so that it can settle there
_PIECE = 1 << 16


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
    """The rounding of one weight [out, in].

    Attributes:
        logits: V, or V' where scale-aware; `descend` writes their gradient.
        soft: the soft weight as of `soften`, whose gradient `descend` reads.
    """

    def __init__(self, w: Tensor, spec: QuantSpec, scale: Scale, *, scale_aware: bool) -> None:
        self.spec, self.scale, w = spec, scale, w.contiguous()
        scales = expand(scale.values(spec), w.shape, spec.tile)
        units = w / scales
        if scale.zero is not None:
            units += expand(scale.zero.float(), w.shape, spec.tile)
        low, high = rounding.neighbours(units, spec.format)
        self.low, self.high = (rounding.encode(end, spec.format) for end in (low, high))
        self.base = decode(self._packed(self.low))
        self.gap = decode(self._packed(self.high)) - self.base
        # The last decision of a weight that has only one neighbour does not matter.
        share = (units - low) / (high - low).clamp(min=1e-30)
        self.share = torch.where(self.gap > 0, share, 0.5).clamp_(0, 1)
        self.unit = self.gap.clamp(min=1e-30) if scale_aware else None
        logits = -torch.log((_HIGH - _LOW) / (self.share - _LOW) - 1)
        self.logits = (logits if self.unit is None else logits * self.unit).requires_grad_()
        self.soft = torch.empty_like(w).requires_grad_()

    def lean(self, share: float) -> None:
        """Go a share of the way to the neighbour that is leant to.

        GPTQ's weights are targets one by one and no solution together; their hard ones are.
        """
        hard = (self.logits.detach() >= 0).float()
        begun = torch.where(self.gap > 0, torch.lerp(self.share, hard, share), self.share)
        logits = -torch.log((_HIGH - _LOW) / (begun - _LOW) - 1)
        self.logits.data = logits if self.unit is None else logits * self.unit

    def soften(self) -> Tensor:
        """The soft weight [out, in] of the logits as they are."""
        self.soft.grad = None
        tensors = (self.logits, self.share, self.base, self.gap, self.soft)
        for logits, share, base, gap, soft in _pieces(*tensors):
            if self.unit is None:
                torch.sigmoid(logits, out=share)
            else:
                torch.div(logits, gap.clamp(min=1e-30), out=share).sigmoid_()
            share.mul_(_HIGH - _LOW).add_(_LOW).clamp_(0, 1)
            torch.addcmul(base, share, gap, out=soft)
        return self.soft

    def descend(self, beta: float | None, weight: float) -> None:
        """Gradient of the loss plus weight * sum (1 - |2 h - 1|^beta) with respect to the logits."""
        assert self.soft.grad is not None
        if self.logits.grad is None:
            self.logits.grad = torch.empty_like(self.logits)
        tensors = (self.share, self.gap, self.soft.grad.contiguous(), self.logits.grad)
        for share, gap, given, out in _pieces(*tensors):
            torch.mul(given, gap, out=out)
            if beta is not None:
                turn = share.mul(2).sub_(1)
                pull = turn.abs().log2_().mul_(beta - 1).exp2_()
                out.addcmul_(pull, turn.sign_(), value=-2 * beta * weight)
            rest = 1 - share
            settled = (share * rest).sign_()
            slope = share.sub(_LOW).mul_(rest.add_(_HIGH - 1)).mul_(settled)
            out.mul_(slope).div_(_HIGH - _LOW)
            if self.unit is not None:
                out.div_(gap.clamp(min=1e-30))

    def undecided(self) -> int:
        """How many weights are on their way between their neighbours."""
        return int(((self.share > 0.01) & (self.share < 0.99) & (self.gap > 0)).sum())

    def hard(self) -> Tensor:
        """[out, in] with every weight at the neighbour that it leans to."""
        return torch.where(self.logits.detach() >= 0, self.base + self.gap, self.base)

    def quantized(self) -> QTensor:
        """The same as codes."""
        return self._packed(torch.where(self.logits.detach() >= 0, self.high, self.low))

    def _packed(self, codes: Tensor) -> QTensor:
        return QTensor(codes, self.scale, self.spec, tuple(codes.shape))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors of one shape that fit the cache together."""
    flat = [x.detach().view(-1) for x in tensors]
    for start in range(0, flat[0].numel(), _PIECE):
        yield tuple(x[start : start + _PIECE] for x in flat)
