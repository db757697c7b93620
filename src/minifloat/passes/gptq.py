"""GPTQ on any grid (Frantar et al. 2023, arXiv 2210.17323): error feedback through the Hessian.

O out, I in. With H = X^T X / N + damping and U the upper Cholesky factor of H^-1, columns are
quantized in order; the error e_j = (w_j - q_j) / U_jj of each is spread over the later columns by
U_j, lazily in spans. Scales are frozen before, so any tile, scale rule and format serves: only the
projection of a column on its grid knows about floating point (ZeroQuant-FP, card 1b.3).

Differs from the authors' code: a dead column (no input ever) keeps its rounded weight instead of 0,
and act-order sorts columns but keeps each column's own group scale (static groups).
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minifloat import rounding
from minifloat.calibrate.stats import quadratic, some_channels
from minifloat.calibrate.walk import Pass, Window, Work
from minifloat.errors import UserError
from minifloat.qtensor import QTensor, decode, encode, scale_of
from minifloat.scales import Scale
from minifloat.spec import QuantSpec
from minifloat.tiles import expand


@torch.no_grad()
def gptq(
    w: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    *,
    scale: Scale | None = None,
    damp: float = 0.01,
    block: int = 32,
    act_order: bool = True,
) -> QTensor:
    """Quantize a weight so that its output error, not its own error, is small.

    Args:
        w: weight [O, I].
        hessian: second moment of its inputs [I, I].
        spec: grid and tiles.
        scale: frozen scales; those of the largest magnitudes if None.
        damp: share of the mean diagonal added to the diagonal.
        block: columns that are corrected one by one; larger spans are corrected by products.
        act_order: quantize columns of large inputs first.
    """
    q, _ = gptq_targets(w, hessian, spec, scale=scale, damp=damp, block=block, act_order=act_order)
    return q


@torch.no_grad()
def gptq_targets(
    w: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    *,
    scale: Scale | None = None,
    damp: float = 0.01,
    block: int = 32,
    act_order: bool = True,
) -> tuple[QTensor, Tensor]:
    """GPTQ's solution, and how far each weight was from its code when it was rounded [O, I].

    The sum of both is what was rounded to nearest: the weight with all that earlier columns owed it.
    """
    w = w.float()
    scale = scale_of(w, spec) if scale is None else scale
    # Columns become rows: a step then reads and writes contiguous memory.
    order = torch.argsort(_diagonal(hessian), descending=True) if act_order else None
    turned = _columns(w, order)
    scales = _columns(expand(scale.values(spec), w.shape, spec.tile), order)
    zeros = None
    if scale.zero is not None:
        zeros = _columns(expand(scale.zero.float(), w.shape, spec.tile), order)
    upper = inverse_factor(hessian, damp, order)
    units = torch.empty_like(turned)
    _solve(_Problem(turned, scales, zeros, upper, units, spec, block), 0, len(turned))
    missing = turned.mul_(upper.diagonal()[:, None])
    del upper, scales, zeros  # a wide layer's are gigabytes
    if order is not None:
        back = torch.argsort(order)
        units, missing = units[back], missing[back]
    codes = rounding.encode(units.T.contiguous(), spec.format)
    return QTensor(codes, scale, spec, tuple(codes.shape)), missing.T


def _columns(x: Tensor, order: Tensor | None) -> Tensor:
    """The columns of [O, I], sorted, as the rows of a new tensor [I, O]."""
    turned = x.T.clone(memory_format=torch.contiguous_format)
    return turned if order is None else turned[order]


def _diagonal(hessian: Tensor) -> Tensor:
    """The diagonal [I] in float32, with 1 for columns that no input ever reached."""
    diagonal = hessian.diagonal().float()
    return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal))


def inverse_factor(hessian: Tensor, damp: float, order: Tensor | None = None) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian [I, I]; damps more where it must.

    With P the reversal of the columns, P H P = L L^T gives H^-1 = U^T U for U = P L^-1 P. So the
    inverse itself, and the second factorization that it would need, are never computed. At most three
    matrices of this size are in memory beside the Hessian, which is left as it is.

    Args:
        hessian: second moment.
        damp: share of the mean diagonal that is added to the diagonal.
        order: of the columns, which the factor will have; None leaves them as they are.
    """
    diagonal = _diagonal(hessian)
    mean = diagonal.mean()
    turn = torch.arange(len(diagonal), device=hessian.device) if order is None else order
    turn = turn.flip(0)
    for strength in (damp, 10 * damp, 100 * damp):
        reverse = hessian.index_select(0, turn).index_select(1, turn).float()
        reverse.diagonal().copy_(diagonal[turn] + strength * mean)
        lower, failed = torch.linalg.cholesky_ex(reverse)
        del reverse
        if int(failed) == 0:
            _invert_lower(lower)
            return torch.flip(lower, (0, 1))
    raise UserError(
        "the Hessian is not positive definite even with strong damping; "
        "check the calibration data for NaN or use more of it"
    )


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves: a plain solve would multiply zeros too."""
    size = lower.shape[0]
    if size <= 256:
        eye = torch.eye(size, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = size // 2
    first, corner, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert_lower(first)
    _invert_lower(last)
    corner.copy_((last @ (corner @ first)).neg_())


class _Problem(NamedTuple):
    """Transposed tensors [I, O]: the weights, their scales and zero points, the rounded units.

    A row of `w` holds its error once it is solved.
    """

    w: Tensor
    scales: Tensor
    zeros: Tensor | None
    upper: Tensor
    units: Tensor
    spec: QuantSpec
    block: int


def _solve(p: _Problem, start: int, end: int) -> None:
    """The feedback loop over some rows, by halves: the later one sees the earlier one's errors in one
    large product, which is faster than many thin ones.
    """
    blocks = -(-(end - start) // p.block)
    if blocks == 1:
        for j in range(start, end):
            _solve_row(p, start, j)
        return
    middle = start + blocks // 2 * p.block
    _solve(p, start, middle)
    p.w[middle:end].addmm_(p.upper[start:middle, middle:end].T, p.w[start:middle], alpha=-1)
    _solve(p, middle, end)


def _solve_row(p: _Problem, start: int, j: int) -> None:
    """Round row `j` of a block that begins at `start`, once what the block owes it is paid."""
    row, scale = p.w[j], p.scales[j]
    if j > start:
        row.addmv_(p.w[start:j].T, p.upper[start:j, j], alpha=-1)
    unit = row / scale
    if p.zeros is None:
        unit = rounding.round_to(unit, p.spec.format)
        value = unit * scale
    else:
        unit = rounding.round_to(unit.round_().add_(p.zeros[j]), p.spec.format)
        value = (unit - p.zeros[j]).mul_(scale)
    p.units[j] = unit
    row.sub_(value).div_(p.upper[j, j])


def solve_gptq(*, damp: float = 0.01, act_order: bool = True) -> Pass:
    """GPTQ on every layer of the window, with the scales it already has.

    Falls back to rounding to nearest where that has the smaller output error (of a large layer, on
    evenly spaced output channels), which keeps the pass never worse than its baseline.
    """

    def solve(work: Work) -> QTensor:
        spec = work.spec.weight
        assert spec is not None
        if getattr(work.module, "groups", 1) > 1:  # no Hessian is kept of such small layers
            return encode(work.weight(), spec, work.scale)
        assert work.hessian is not None, "collect() comes before solve_gptq()"
        w, hessian = work.weight(), work.hessian.value
        solved = gptq(w, hessian, spec, scale=work.scale, damp=damp, act_order=act_order)
        nearest = encode(w, spec, work.scale)
        some = some_channels(w.shape[0])
        errors = [quadratic((w - decode(q))[some], hessian) for q in (solved, nearest)]
        return solved if errors[0] <= errors[1] else nearest

    def apply(window: Window) -> None:
        team = window.team
        for index, work in enumerate(window.layers.values()):
            if team.mine(index):
                work.q = solve(work)
        for index, work in enumerate(window.layers.values() if team.size > 1 else ()):
            assert work.spec.weight is not None
            q = work.q if team.mine(index) else encode(work.weight(), work.spec.weight, work.scale)
            assert q is not None
            work.q = replace(q, codes=team.send_round(index, q.codes.contiguous()))

    return apply
