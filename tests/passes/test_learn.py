"""Learned rounding, searched formats and static inputs on small blocks, linear and convolutional."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from minifloat import formats
from minifloat.calibrate.runs import Call
from minifloat.calibrate.walk import Window, Work
from minifloat.errors import UserError
from minifloat.passes.assign import assign_scales, round_to_nearest
from minifloat.passes.assign import collect as collect_hessians
from minifloat.passes.formats import activation_matrix, search_inputs, search_weights
from minifloat.passes.gptq import gptq_targets, solve_gptq
from minifloat.passes.learn import learn_rounding
from minifloat.passes.rounder import Annealing
from minifloat.qtensor import decode, encode, fake_quantize
from minifloat.rounding import neighbours
from minifloat.scales import FULL_GRID, search_scale
from minifloat.spec import NVFP4, LayerSpec, QuantSpec

INPUT = QuantSpec(formats.E4M3, (-1, -1))


class Block(nn.Module):
    """A residual block of two convolutions and a linear layer over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 12, 3, padding=1)
        self.second = nn.Conv2d(12, 8, 3, padding=1, stride=1)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(x).relu() * scale)
        out: torch.Tensor = x + self.mix(hidden.movedim(1, -1)).movedim(-1, 1)
        return out


def window(spec: LayerSpec, batches: int = 8) -> tuple[Window, list[Call], list[torch.Tensor]]:
    """A window of the block, and held-out calls with their outputs."""
    torch.manual_seed(0)
    block = Block().requires_grad_(False)
    mix = 3 * torch.randn(8, 8)  # correlated channels
    calls = [
        Call(
            "b",
            (torch.einsum("ncyx,cd->ndyx", torch.randn(4, 8, 6, 6), mix),),
            {"scale": torch.ones(())},
        )
        for _ in range(batches + 4)
    ]
    targets = [block(*call.args, **call.kwargs) for call in calls]
    layers: dict[str, nn.Linear | nn.Conv2d] = {
        "b.first": block.first,
        "b.second": block.second,
        "b.mix": block.mix,
    }
    works = {name: Work(layer, spec) for name, layer in layers.items()}
    return (
        Window("b", block, works, calls[:batches], targets[:batches]),
        calls[batches:],
        targets[batches:],
    )


def held_out_error(found: Window, calls: list[Call], targets: list[torch.Tensor]) -> float:
    for work in found.layers.values():
        work.module.weight.data = work.quantized_weight().reshape(work.module.weight.shape)
    error = sum(
        (found.block(*c.args, **c.kwargs) - t).square().sum()
        for c, t in zip(calls, targets, strict=True)
    )
    return float(error)


def solved(spec: LayerSpec, *passes: Any) -> tuple[Window, float]:
    found, calls, targets = window(spec)
    weights = {name: work.weight() for name, work in found.layers.items()}
    for apply in (assign_scales(search=True), *passes):
        apply(found)
    error = held_out_error(found, calls, targets)
    for name, work in found.layers.items():
        work.module.weight.data = weights[name].reshape(work.module.weight.shape)
    return found, error


GRIDS = [formats.E2M1, formats.E1M2, formats.INT4, formats.E3M0]


@pytest.mark.parametrize("fmt", GRIDS, ids=str)
@pytest.mark.parametrize("tile", [(-1, -1), (1, 20)], ids=str)
def test_learned_rounding_beats_nearest_on_held_out_batches(
    fmt: formats.Format, tile: tuple[int, int]
) -> None:
    spec = LayerSpec(QuantSpec(fmt, tile, formats.FP32))
    _, nearest = solved(spec, round_to_nearest())
    _, learned = solved(spec, learn_rounding(steps=300))
    assert learned < 0.8 * nearest


def test_scale_aware_learning_is_a_learning_rate_of_its_own() -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, 20), formats.FP16))
    _, nearest = solved(spec, round_to_nearest())
    _, learned = solved(spec, learn_rounding(steps=300, lr=1e-3, scale_aware=True))
    assert learned < 0.8 * nearest


def test_every_weight_goes_to_one_of_its_neighbours() -> None:
    spec = QuantSpec(formats.E2M1, (-1, -1), formats.FP32)
    found, _ = solved(LayerSpec(spec), learn_rounding(steps=100))
    for work in found.layers.values():
        assert work.q is not None
        scale = work.q.scale.values(spec)
        low, high = neighbours(work.weight() / scale, spec.format)
        w = work.quantized_weight()
        assert bool(((w == low * scale) | (w == high * scale)).all())


def test_learning_that_does_not_help_leaves_rounding_to_nearest() -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (-1, -1), formats.FP32))
    _, nearest = solved(spec, round_to_nearest())
    _, idle = solved(spec, learn_rounding(steps=0))
    _, wild = solved(spec, learn_rounding(steps=20, lr=1e6))
    assert idle == wild == pytest.approx(nearest)


def test_gptq_rounds_its_targets_to_nearest_and_learning_goes_on_from_there() -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, 20), formats.FP16))
    found, solved_error = solved(spec, collect_hessians(), solve_gptq())
    for work in found.layers.values():
        assert work.hessian is not None and spec.weight is not None
        q, missing = gptq_targets(work.weight(), work.hessian.value, spec.weight, scale=work.scale)
        again = encode(decode(q) + missing, spec.weight, work.scale)
        assert float((again.codes != q.codes).float().mean()) < 1e-3  # ties and the last bit
    _, nearest = solved(spec, learn_rounding(steps=100))
    _, learned = solved(spec, collect_hessians(), learn_rounding(steps=100, start="gptq"))
    assert learned < 0.98 * solved_error
    assert learned < nearest


@pytest.mark.parametrize("start", ["nearest", "gptq"])
def test_no_step_makes_held_out_batches_worse_than_the_start(start: str) -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, 20), formats.FP16))
    collect = [] if start == "nearest" else [collect_hessians()]
    first = round_to_nearest() if start == "nearest" else solve_gptq()
    begun, _ = solved(spec, *collect, first)
    floor = own_held_out_error(begun)
    for lr in (1e-1, 3.0):
        for steps in (7, 60):
            found, _ = solved(spec, *collect, learn_rounding(steps=steps, lr=lr, start=start))
            assert own_held_out_error(found) <= floor * (1 + 1e-5)


def own_held_out_error(found: Window) -> float:
    """Error on the last eighth of the window's own batches, which the pass judges on."""
    cut = len(found.calls) * 7 // 8
    weights = {work.module: work.module.weight.data for work in found.layers.values()}
    error = held_out_error(found, found.calls[cut:], found.targets[cut:])
    for module, weight in weights.items():
        module.weight.data = weight
    return error


def test_learning_ends_when_every_weight_has_decided() -> None:
    found, _, _ = window(LayerSpec(QuantSpec(formats.E2M1, (1, 20), formats.FP16)))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    found.block.register_forward_hook(count)
    assign_scales()(found)
    learn_rounding(steps=800, lr=0.3, annealing=Annealing(weight=1e6, start=3.0))(found)
    assert 100 < calls < 600


def test_a_start_at_gptq_without_hessians_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="collect"):
        solved(LayerSpec(QuantSpec(formats.E2M1)), learn_rounding(start="gptq"))
    with pytest.raises(UserError, match="did you mean 'gptq'"):
        learn_rounding(start="gptqq")


def test_bfloat16_learns_as_well() -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, 20), formats.FP16))
    _, full = solved(spec, learn_rounding(steps=150))
    _, mixed = solved(spec, learn_rounding(steps=150, mixed=True))
    assert mixed < 1.05 * full


class TwoStreams(nn.Module):
    """A block that hands on text and image, as those of SD3 and Flux do."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.text(text), self.image(image)


def test_all_tensors_that_a_block_returns_count() -> None:
    torch.manual_seed(0)
    block, mix = TwoStreams().requires_grad_(False), torch.randn(16, 16)
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, -1)))
    works = {"b.text": Work(block.text, spec), "b.image": Work(block.image, spec)}
    calls = [
        Call("b", (torch.randn(32, 16) @ mix, torch.randn(32, 16) @ mix), {}) for _ in range(8)
    ]
    found = Window("b", block, works, calls, [block(*call.args) for call in calls])
    for apply in (assign_scales(), learn_rounding(steps=150)):
        apply(found)
    x = torch.randn(256, 16) @ mix
    for work in works.values():
        assert work.scale is not None
        errors = [
            float((x @ (w - work.weight()).T).square().sum())
            for w in (
                work.quantized_weight(),
                decode(encode(work.weight(), spec.weight, work.scale)),
            )
        ]
        assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    "fmt", [*GRIDS, formats.E4M3, formats.E5M2, formats.NF4, formats.UINT4], ids=str
)
def test_neighbours_hold_a_number_between_them(fmt: formats.Format) -> None:
    x = torch.linspace(fmt.min * 1.2 - 0.1, fmt.max * 1.2, 5001)
    low, high = neighbours(x, fmt)
    inside = (x >= fmt.min) & (x < fmt.max)
    assert bool(((low <= x) & (x < high))[inside].all())
    assert bool((low == high)[~inside].all())
    assert bool((fake_quantize(low[None], QuantSpec(fmt, (-1, -1)), _one(fmt)) == low).all())


def _one(fmt: formats.Format) -> Any:
    from minifloat.scales import Scale

    return Scale(torch.ones(1, 1))


def test_static_inputs_choose_unsigned_formats_where_nothing_is_negative() -> None:
    spec = LayerSpec(QuantSpec(formats.E4M3, (-1, -1)), INPUT)
    found, calls, _ = window(spec)
    candidates = [formats.Format.parse(name) for name in ("e3m4", "e2m5", "ue3m5", "ue2m6")]
    for apply in (search_weights([formats.E2M5]), round_to_nearest(), search_inputs(candidates)):
        apply(found)
    chosen = {name: work.spec.input for name, work in found.layers.items()}
    assert all(spec is not None for spec in chosen.values())
    assert chosen["b.first"] is not None and chosen["b.first"].format.signed
    assert chosen["b.second"] is not None and not chosen["b.second"].format.signed
    x = calls[0].args[0]
    first = found.layers["b.first"]
    assert first.spec.input is not None
    rounded = fake_quantize(x, first.spec.input, first.input_scale)
    assert float((rounded - x).norm() / x.norm()) < 0.03


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_block_scales_get_the_scale_that_lets_the_largest_input_fit(size: float) -> None:
    """Under it nothing overflows E4M3's 448, whatever the inputs' size; under 1, large ones do."""
    found, _, _ = window(LayerSpec(NVFP4, NVFP4))
    for call in found.calls:
        call.args[0].mul_(size)
    for apply in (assign_scales(), round_to_nearest(), search_inputs()):
        apply(found)
    first = found.layers["b.first"]
    x = torch.cat([activation_matrix(call.args[0], first.module) for call in found.calls])
    assert first.spec.input is not None and first.input_scale is not None
    assert float(first.input_scale.stored) == pytest.approx(float(x.abs().max()) / (448 * 6))
    plain = replace(first.spec.input, scale=formats.E4M3)
    errors = [
        float((fake_quantize(x, *grid) - x).norm() / x.norm())
        for grid in ((first.spec.input, first.input_scale), (plain, None))
    ]
    assert errors[0] < 0.12
    assert errors[1] > (0.9 if size > 1 else 0.0)


def test_a_static_input_without_a_pass_that_finds_its_scale_is_refused() -> None:
    from minifloat.substitute import packed_like

    found, _ = solved(LayerSpec(QuantSpec(formats.E2M1), INPUT), round_to_nearest())
    work = found.layers["b.mix"]
    assert work.q is not None
    with pytest.raises(UserError, match="input_scale"):
        packed_like(work.module, work.spec).fill(work.q)


@pytest.mark.parametrize("fmt", ["e2m1", "e4m3", "e3m4", "int8", "ue3m5"])
def test_coarse_to_fine_finds_the_full_grids_optimum(fmt: str) -> None:
    generator = torch.Generator().manual_seed(0)
    spec = QuantSpec(formats.Format.parse(fmt), (1, -1))
    x = nn.functional.silu(2 * torch.randn(32, 1024, generator=generator))
    errors = [
        float(
            (fake_quantize(x, spec, search_scale(x, spec, FULL_GRID, coarse=coarse)) - x)
            .square()
            .sum()
        )
        for coarse in (1, 5)
    ]
    assert errors[0] <= errors[1] < 1.01 * errors[0]
