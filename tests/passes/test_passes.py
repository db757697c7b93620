"""The claims of the passes on plain tensors: GPTQ, LoRC and their edge cases."""

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minifloat import formats
from minifloat.calibrate.stats import Hessian, output_sqnr, sqnr
from minifloat.calibrate.walk import Work
from minifloat.errors import UserError
from minifloat.passes.assign import assign_scales
from minifloat.passes.gptq import gptq, inverse_factor
from minifloat.passes.low_rank import low_rank
from minifloat.qtensor import decode, encode
from minifloat.scales import search_scale
from minifloat.spec import SPECS, LayerSpec, QuantSpec


def problem(seed: int = 0, features: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight and correlated inputs, for fitting and held out."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(features, features, generator=generator) / features**0.5
    mix *= torch.logspace(0, -2, features)[:, None]
    x = torch.randn(2048, features, generator=generator) @ mix
    held_out = torch.randn(1024, features, generator=generator) @ mix
    return torch.randn(48, features, generator=generator), x, held_out


GRIDS = [formats.INT4, formats.E2M1, formats.E3M0, formats.INT3, formats.E4M3]


@pytest.mark.parametrize("fmt", GRIDS, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_trades_weight_error_for_held_out_output_error(
    fmt: formats.Format, act_order: bool
) -> None:
    w, x, held_out = problem()
    spec = QuantSpec(fmt, (1, 40), formats.FP16)  # 96 is not a multiple of 40
    nearest = decode(encode(w, spec))
    solved = decode(gptq(w, x.T @ x, spec, act_order=act_order))
    assert (w - solved).square().sum() > (w - nearest).square().sum()
    assert (held_out @ (w - solved).T).square().sum() < (held_out @ (w - nearest).T).square().sum()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "fp8-block", "int4-g128", "nf4-g64"])
def test_gptq_keeps_the_scales_it_is_given(name: str) -> None:
    w, x, _ = problem(1)
    scale = search_scale(w, SPECS[name])
    solved = gptq(w, x.T @ x, SPECS[name], scale=scale)
    assert solved.scale is scale


def test_gptq_with_a_zero_point() -> None:
    w, x, held_out = problem(2)
    spec = QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True)
    nearest, solved = decode(encode(w, spec)), decode(gptq(w, x.T @ x, spec))
    assert (held_out @ (w - solved).T).square().sum() < (held_out @ (w - nearest).T).square().sum()


def test_gptq_without_correlation_is_rounding_to_nearest() -> None:
    w, _, _ = problem()
    spec = SPECS["fp4-g128"]
    assert torch.equal(gptq(w, torch.eye(96), spec, damp=0.0).codes, encode(w, spec).codes)


def test_gptq_blocks_do_not_change_the_result() -> None:
    w, x, _ = problem()
    whole = gptq(w, x.T @ x, SPECS["fp4-g128"], block=96)
    parts = gptq(w, x.T @ x, SPECS["fp4-g128"], block=7)
    assert (whole.codes != parts.codes).float().mean() < 0.01  # sums in another order


def test_dead_columns_keep_their_rounded_weight() -> None:
    w, x, _ = problem()
    x[:, 5] = 0
    spec = SPECS["int8-channel"]
    solved, nearest = gptq(w, x.T @ x, spec), encode(w, spec)
    assert torch.equal(solved.codes[:, 5], nearest.codes[:, 5])


def test_a_singular_hessian_is_damped_and_a_broken_one_is_named() -> None:
    assert torch.isfinite(inverse_factor(torch.ones(8, 8), 0.01)).all()
    with pytest.raises(UserError, match="positive definite"):
        inverse_factor(torch.full((8, 8), torch.nan), 0.01)


def test_low_rank_error_is_the_tail_of_the_singular_values() -> None:
    error = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(error)
    last = torch.inf
    for rank in (1, 4, 8, 40):
        up, down = low_rank(error, rank)
        left = float((error - up @ down).square().sum())
        assert left == pytest.approx(float(values[rank:].square().sum()), rel=1e-3, abs=1e-6)
        assert left < last
        last = left


def test_randomised_svd_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(300, 16, generator=generator) @ torch.randn(16, 200, generator=generator)
    error += 0.1 * torch.randn(300, 200, generator=generator)
    exact = low_rank(error, 8)
    monkeypatch.setattr("minifloat.passes.low_rank._EXACT_BELOW", 100)
    up, down = low_rank(error, 8)
    assert not torch.equal(up, exact[0])
    assert torch.equal(up, low_rank(error, 8)[0])  # its draws are seeded
    tail = torch.linalg.svdvals(error)[8:].square().sum()
    assert float((error - up @ down).square().sum()) < 1.02 * float(tail)


@pytest.mark.parametrize("features", [1, 400, 401, 903])
def test_a_hessian_by_halves_is_the_product(features: int) -> None:
    x = torch.randn(64, features, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(features, x.device)
    for part in x.split(24):
        hessian.add(part)
    assert hessian.rows == 64
    torch.testing.assert_close(hessian.value, x.T @ x / 64)
    assert torch.equal(hessian.value, hessian.value.T)


def test_output_sqnr_from_the_hessian_is_that_of_the_outputs() -> None:
    w, x, _ = problem()
    w_hat = decode(encode(w, replace(SPECS["fp4-g128"], tile=(1, 32))))
    assert output_sqnr(w, w_hat, x.T @ x) == pytest.approx(
        sqnr(x @ w.T, x @ (w - w_hat).T), abs=0.01
    )


@pytest.mark.parametrize("search", [False, True])
def test_layers_that_engines_fuse_share_their_outer_scale(search: bool) -> None:
    spec = LayerSpec(SPECS["nvfp4"])
    names = [f"block.attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    layers = {}
    for i, name in enumerate(names):
        module = torch.nn.Linear(64, 32, bias=False)
        module.weight.data.mul_(i + 1)
        layers[name] = Work(module, spec)
    window: Any = SimpleNamespace(layers=layers)
    assign_scales(search=search)(window)
    outers = [layers[name].scale.outer for name in names]  # type: ignore[union-attr]
    assert outers[0] is not None
    assert torch.equal(outers[0], outers[1])
    assert torch.equal(outers[0], outers[2])
    assert not torch.equal(outers[0], outers[3])  # type: ignore[arg-type]


def test_gptq_leaves_no_tensors_for_the_garbage_collector() -> None:
    """Cycles would keep a layer's gigabytes until it comes, which is long after the next layer."""
    torch.manual_seed(0)
    w, hessian = torch.randn(64, 96), torch.eye(96)
    spec = QuantSpec(formats.E2M1, (1, 32), formats.FP16)
    gptq(w, hessian, spec)  # what is made once and kept
    gc.collect()
    gc.disable()
    try:
        before = _tensors()
        gptq(w, hessian, spec)
        assert _tensors() == before
    finally:
        gc.enable()


def _tensors() -> int:
    return sum(type(o) is torch.Tensor for o in gc.get_objects())
