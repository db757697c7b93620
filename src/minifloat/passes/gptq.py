"""GPTQ on any grid (Frantar et al. 2023, arXiv 2210.17323): error feedback through the Hessian.

O out, I in. With H = X^T X / N + damping and U the upper Cholesky factor of H^-1, columns are
quantized in order; the error e_j = (w_j - q_j) / U_jj of each is spread over the later columns by
U_j, lazily in blocks. Scales are frozen before, so any tile, scale rule and format serves: only the
projection of a column on its grid knows about floating point (ZeroQuant-FP, card 1b.3).

Differs from the authors' code: a dead column (no input ever) keeps its rounded weight instead of 0,
and act-order sorts columns but keeps each column's own group scale (static groups).
"""

import torch
from torch import Tensor

from minifloat import rounding
from minifloat.calibrate.walk import Pass, Window
from minifloat.errors import UserError
from minifloat.qtensor import QTensor, decode, encode, scale_of
from minifloat.scales import Scale, expand
from minifloat.spec import QuantSpec


def gptq(
    w: Tensor,
    hessian: Tensor,
    spec: QuantSpec,
    *,
    scale: Scale | None = None,
    damp: float = 0.01,
    block: int = 128,
    act_order: bool = True,
) -> QTensor:
    """Quantize a weight so that its output error, not its own error, is small.

    Args:
        w: weight [O, I].
        hessian: second moment of its inputs [I, I].
        spec: grid and tiles.
        scale: frozen scales; those of the largest magnitudes if None.
        damp: share of the mean diagonal added to the diagonal.
        block: columns whose updates are gathered before the rest sees them.
        act_order: quantize columns of large inputs first.
    """
    w = w.float()
    scale = scale_of(w, spec) if scale is None else scale
    scales = expand(scale.values(spec), w.shape, spec.tile)
    zeros = None if scale.zero is None else expand(scale.zero.float(), w.shape, spec.tile)
    hessian = hessian.float().clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal <= 0] = 1.0
    order = torch.argsort(diagonal, descending=True) if act_order else None
    if order is not None:
        w, scales, hessian = w[:, order], scales[:, order], hessian[order][:, order]
        zeros = None if zeros is None else zeros[:, order]
    upper = inverse_factor(hessian, damp)
    # Columns become rows: a step then reads and writes contiguous memory.
    units = _solve(
        w.T.contiguous(),
        scales.T.contiguous(),
        None if zeros is None else zeros.T.contiguous(),
        upper,
        spec,
        block,
    ).T
    if order is not None:
        units = units[:, torch.argsort(order)]
    codes = rounding.encode(units.contiguous(), spec.format)
    return QTensor(codes, scale, spec, tuple(codes.shape))


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """Upper Cholesky factor of the inverse of a damped Hessian [I, I]; damps more where it must."""
    mean = hessian.diagonal().mean()
    eye = torch.eye(hessian.shape[0], device=hessian.device)
    upper: Tensor
    for strength in (damp, 10 * damp, 100 * damp):
        lower, failed = torch.linalg.cholesky_ex(hessian + strength * mean * eye)
        if int(failed) == 0:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if int(failed) == 0:
                return upper
    raise UserError(
        "the Hessian is not positive definite even with strong damping; "
        "check the calibration data for NaN or use more of it"
    )


def _solve(
    w: Tensor, scales: Tensor, zeros: Tensor | None, upper: Tensor, spec: QuantSpec, block: int
) -> Tensor:
    """The feedback loop on transposed tensors [I, O]; returns the rounded units [I, O]."""
    units = torch.empty_like(w)
    columns = w.shape[0]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.empty_like(w[start:end])
        factor = upper[start:end, start:end]
        for j in range(end - start):
            row = w[start + j]
            unit = row / scales[start + j]
            if zeros is None:
                unit = rounding.round_to(unit, spec.format)
                value = unit * scales[start + j]
            else:
                zero = zeros[start + j]
                unit = rounding.round_to(unit.round_() + zero, spec.format)
                value = (unit - zero) * scales[start + j]
            units[start + j] = unit
            errors[j] = (row - value) / factor[j, j]
            if j + 1 < end - start:
                w[start + j + 1 : end].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        if end < columns:
            w[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return units


def solve_gptq(*, damp: float = 0.01, act_order: bool = True) -> Pass:
    """GPTQ on every layer of the window, with the scales it already has.

    Falls back to rounding to nearest where that has the smaller output error, which keeps the pass
    never worse than its baseline on its own objective.
    """

    def apply(window: Window) -> None:
        for work in window.layers.values():
            spec = work.spec.weight
            assert spec is not None
            assert work.hessian is not None, "collect() comes before solve_gptq()"
            w, hessian = work.weight(), work.hessian.value
            solved = gptq(w, hessian, spec, scale=work.scale, damp=damp, act_order=act_order)
            nearest = encode(w, spec, work.scale)
            better = _output_error(w, solved, hessian) <= _output_error(w, nearest, hessian)
            work.q = solved if better else nearest

    return apply


def _output_error(w: Tensor, q: QTensor, hessian: Tensor) -> float:
    error = w - decode(q)
    return float(((error @ hessian) * error).sum())
