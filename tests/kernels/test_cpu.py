"""The fast row gives what the reference gives: odd shapes, all instruction sets, all specs."""

from dataclasses import replace

import pytest
import torch

from minifloat import formats
from minifloat.errors import UserError
from minifloat.kernels import fast, native, reference
from minifloat.kernels.native.layer import whole_levels
from minifloat.kernels.table import pick
from minifloat.scales import Scale
from minifloat.spec import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    INT4_G128,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP6,
    MXFP8,
    NVFP4,
    QOQ_G128,
    LayerSpec,
    QuantSpec,
)
from tests.kernels.problems import assert_close, problem

INT8_G64 = QuantSpec(formats.INT8, (1, 64), dynamic=True)
WEIGHTS = {
    "e2m1 g128": QuantSpec(formats.E2M1, (1, 128), formats.FP16),
    "e3m0 row": QuantSpec(formats.E3M0, (1, -1)),
    "int4 g32": replace(INT4_G128, tile=(1, 32)),
    "ue3m1 g64": QuantSpec(formats.floating(3, 1, signed=False), (1, 64)),  # levels up to 192
    "nf4 g64": QuantSpec(formats.NF4, (1, 64)),
    "e1m2 bf16": QuantSpec(formats.E1M2, (1, 96), formats.BF16),
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
    "m2": QuantSpec(formats.E2M1, (1, 64), QuantSpec(formats.POW4, (1, -1))),
    "block": QuantSpec(formats.E2M1, (16, 128)),
    "e4m3 row": FP8_CHANNEL,
    "e4m3 tensor": FP8_TENSOR,
    "e4m3 block": FP8_BLOCK,
    "mxfp8": MXFP8,
    "int8 row": INT8_CHANNEL,
    "int8 g48": QuantSpec(formats.INT8, (1, 48), formats.FP16),
    "e5m2": QuantSpec(formats.E5M2, (1, 128)),
    "e3m4": QuantSpec(formats.E3M4, (1, 64)),
    "e2m5": QuantSpec(formats.E2M5, (1, -1)),
    "mxfp6": MXFP6,
    "e3m2 row": QuantSpec(formats.E3M2),
    "e3m2 g12": QuantSpec(formats.E3M2, (1, 12), formats.FP16),
    "int6 g64": QuantSpec(formats.INT6, (1, 64)),
    "uint4 zero g32": QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True),
    "qoq": QOQ_G128,
    "uint4 zero row": QuantSpec(formats.UINT4, zero_point=True),
    "uint4 zero block": QuantSpec(formats.UINT4, (16, 128), zero_point=True),
}
INPUTS = {
    "none": None,
    "int8": INT8_TOKEN,
    "e4m3": FP8_TOKEN,
    "int8 g64": INT8_G64,
    "mxfp8": MXFP8,
    "e5m2": replace(FP8_TOKEN, format=formats.E5M2),
    "int6": replace(INT8_TOKEN, format=formats.INT6),
    "unsigned": QuantSpec(formats.UINT8, (1, -1), zero_point=True, dynamic=True),
}
# (tokens, in, out): ragged groups, odd widths, more tokens than a tile, rows than a panel, a block.
SHAPES = [
    (1, 576, 48),
    (2, 1, 5),
    (3, 31, 7),
    (9, 301, 33),
    (17, 129, 66),
    (33, 577, 5),
    (245, 40, 3),
]


@pytest.fixture(autouse=True)
def built() -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no fast row to test")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_equals_the_reference(isa: str, shape: tuple[int, int, int]) -> None:
    for weight in WEIGHTS.values():
        for given in (None, INT8_TOKEN, FP8_TOKEN):
            x, layer = problem(LayerSpec(weight, given), *shape)
            assert pick("linear", layer.spec, "cpu").name == "cpu", weight
            assert_close(fast.linear(x, layer), reference.linear(x, layer))


@pytest.mark.parametrize("shape", [(3, 301, 33), (20, 301, 70)], ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_every_input_equals_the_reference(isa: str, name: str, shape: tuple[int, int, int]) -> None:
    for weight in ("e2m1 g128", "int8 g48", "mxfp8", "mxfp6", "uint4 zero g32"):
        x, layer = problem(LayerSpec(WEIGHTS[weight], INPUTS[name]), *shape)
        assert_close(fast.linear(x, layer), reference.linear(x, layer))


@pytest.mark.parametrize(
    "weight", ["e2m1 g128", "e3m0 row", "int4 g32", "e1m2 bf16", "int8 row", "uint4 zero g32"]
)
@pytest.mark.parametrize("tokens", [2, 40])
def test_integers_are_multiplied_exactly(isa: str, weight: str, tokens: int) -> None:
    """With scales that are powers of two nothing is rounded: the result is the sum of the products."""
    spec = replace(WEIGHTS[weight], scale=formats.E8M0)
    static = QuantSpec(formats.INT8, (-1, -1))
    x, layer = problem(LayerSpec(spec, static), tokens, 333, 21)
    layer = layer._replace(bias=None, input_scale=Scale(torch.full((1, 1), 0.03125)))
    exact = layer.quantized_input(x).double() @ layer.weight().double().T
    assert torch.equal(fast.linear(x, layer).double(), exact)


@pytest.mark.parametrize("tokens", [3, 40])
def test_block_scales_lie_under_the_calibrated_one(isa: str, tokens: int) -> None:
    x, layer = problem(LayerSpec(NVFP4, NVFP4), tokens, 304, 21)
    layer = layer._replace(input_scale=Scale(x.abs().max().reshape(1, 1) / (448 * 6)))
    assert_close(fast.linear(x, layer), reference.linear(x, layer))
    error = (layer.quantized_input(x) - x).norm() / x.norm()
    other = layer._replace(input_scale=Scale(torch.full((1, 1), 1e-5)))  # which clips
    assert float((other.quantized_input(x) - x).norm() / x.norm()) > 5 * float(error)


@pytest.mark.parametrize("spec", [None, INT8_TOKEN, FP8_TOKEN], ids=str)
@pytest.mark.parametrize("tokens", [3, 24])
def test_bf16_goes_in_and_out(isa: str, spec: QuantSpec | None, tokens: int) -> None:
    """The sums are fp32's; only x and the result are bf16."""
    x, layer = problem(LayerSpec(WEIGHTS["e2m1 g128"], spec), tokens, 200, 24)
    short = x.bfloat16()
    expected = reference.linear(short.float(), layer)
    y = fast.linear(short, layer)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-5)


def test_nan_stays_in_its_token(isa: str) -> None:
    for spec in (None, INT8_TOKEN, FP8_TOKEN, QuantSpec(formats.INT8, (-1, -1))):
        for tokens in (3, 24):
            x, layer = problem(LayerSpec(WEIGHTS["e2m1 g128"], spec), tokens, 200, 24)
            layer = layer._replace(input_scale=Scale(torch.ones(1, 1)))
            x[0, 1, 7] = torch.nan
            y = fast.linear(x, layer)
            assert bool(y[0, 1].isnan().all())
            assert int(y.isnan().any(-1).sum()) == 1


def test_low_rank_branch() -> None:
    x, layer = problem(LayerSpec(WEIGHTS["e2m1 g128"], FP8_TOKEN), 3, 200, 24, rank=4)
    assert_close(fast.linear(x, layer), reference.linear(x, layer))


def test_an_input_of_another_width_is_refused() -> None:
    x, layer = problem(LayerSpec(weight=WEIGHTS["mxfp4"]), 2, 64, 8)
    with pytest.raises(UserError, match="takes 64 features, but its input has 63"):
        fast.linear(x[..., :63], layer)


def test_gradients_take_the_reference() -> None:
    x, layer = problem(LayerSpec(weight=WEIGHTS["mxfp4"]), 2, 64, 8)
    x.requires_grad_()
    fast.linear(x, layer).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("tokens", [3, 50])
def test_the_number_of_threads_changes_nothing(tokens: int) -> None:
    x, layer = problem(LayerSpec(WEIGHTS["mxfp4"], INT8_TOKEN), tokens, 640, 200)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fast.linear(x, layer))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


def test_levels_of_a_format_are_its_values() -> None:
    for fmt in (formats.E2M1, formats.E1M2, formats.E3M0, formats.INT4, formats.UINT4):
        found = whole_levels(fmt)
        assert found is not None
        unit, bias, levels = found
        assert [unit * (level - bias) for level in levels] == list(fmt.values)
    assert whole_levels(formats.NF4) is None
    assert whole_levels(formats.E4M3) is None


@pytest.mark.parametrize(
    "weight",
    [
        QuantSpec(formats.floating(5, 2, top="finite"), (1, 128)),  # beyond fp16
        QuantSpec(formats.UINT8, (1, 128), zero_point=True),
        QuantSpec(formats.E2M1, (1, 20)),  # groups begin within a dword
        QuantSpec(formats.INT5, (1, 32)),
    ],
    ids=str,
)
def test_what_it_does_not_take_goes_to_the_reference(weight: QuantSpec) -> None:
    assert pick("linear", LayerSpec(weight=weight), "cpu").name == "reference"


def test_a_row_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LayerSpec(weight=WEIGHTS["mxfp4"])
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")
    assert pick("linear", spec, "cpu").name == "reference"
