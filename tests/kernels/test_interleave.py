"""Rows side by side are another order of the same layer, and never leave the process in it."""

import copy
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from minifloat import formats
from minifloat.embedding import QEmbedding
from minifloat.kernels import fast, native, reference
from minifloat.kernels.interleave import in_rows, interleave, rows_of, some_rows, suits
from minifloat.layers import QConv2d, QLinear
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import FP8_TOKEN, INT8_CHANNEL, INT8_TOKEN, NVFP4, LayerSpec, QuantSpec
from tests.kernels.problems import assert_close, problem, side_by_side
from tests.kernels.test_cpu import INPUTS, WEIGHTS

E2M1 = LayerSpec(WEIGHTS["e2m1 g128"], INT8_TOKEN)
ZERO = LayerSpec(WEIGHTS["uint4 zero g32"], INT8_TOKEN)
# (in, out): strips left over, ragged last groups, more columns than are multiplied in one go.
SHAPES = [(8, 16), (40, 48), (264, 80), (1096, 112), (72, 1040)]


@pytest.fixture(autouse=True)
def built() -> None:
    if not native.reads_interleaved():
        pytest.skip("no kernels for rows side by side: no C compiler at install time, or no VNNI")


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([1, 3, 4]), st.booleans())
def test_it_is_a_permutation_and_has_an_inverse(
    strips: int, units: int, unit: int, long: bool
) -> None:
    shape = (16 * strips * (400 if long else 1), units * unit)
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    y = x.clone()
    interleave(y, unit)
    assert torch.equal(y.flatten().sort().values, x.flatten().sort().values)
    assert torch.equal(rows_of(y, unit), x)
    ids = torch.randint(0, len(x), (7,))
    assert torch.equal(some_rows(y, ids, unit), x[ids])
    in_rows(y, unit)
    assert torch.equal(y, x)


def test_units_of_sixteen_rows_follow_each_other() -> None:
    x = torch.arange(32 * 8).reshape(32, 8)
    y = x.clone()
    interleave(y, 4)
    expected = [
        x[row, at : at + 4]
        for first in (0, 16)
        for at in (0, 4)
        for row in range(first, first + 16)
    ]
    assert torch.equal(y.flatten(), torch.cat(expected))


every_level = pytest.mark.parametrize("isa", ["avx512-vnni", "avx512-bf16"], indirect=True)


@every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_equals_the_reference(isa: str, shape: tuple[int, int]) -> None:
    taken = 0
    for weight in WEIGHTS.values():
        if not suits(LayerSpec(weight), (shape[1], shape[0])):
            continue
        for given in (None, INT8_TOKEN, FP8_TOKEN):
            for tokens in (1, 2, 5, 13):
                x, layer = problem(LayerSpec(weight, given), tokens, *shape)
                taken += 1
                assert_close(fast.linear(x, side_by_side(layer)), reference.linear(x, layer))
    assert taken >= 12 * (len(WEIGHTS) - 2)


@every_level
@pytest.mark.parametrize("tokens", [*range(1, 14), 16, 25, 61, 540])
def test_every_number_of_tokens_equals_the_reference(isa: str, tokens: int) -> None:
    for name in ("e2m1 g128", "int8 row", "e4m3 row", "mxfp6", "uint4 zero g32"):
        for given in (None, INT8_TOKEN, FP8_TOKEN):
            x, layer = problem(LayerSpec(WEIGHTS[name], given), tokens, 296, 80)
            assert_close(fast.linear(x, side_by_side(layer)), reference.linear(x, layer))


@every_level
@pytest.mark.parametrize("name", INPUTS)
def test_every_input_equals_the_reference(isa: str, name: str) -> None:
    for weight in ("e2m1 g128", "int8 g48", "mxfp8", "mxfp6", "uint4 zero g32"):
        for tokens in (3, 20):
            x, layer = problem(LayerSpec(WEIGHTS[weight], INPUTS[name]), tokens, 304, 48)
            assert_close(fast.linear(x, side_by_side(layer)), reference.linear(x, layer))


@every_level
@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("weight", ["e2m1 g128", "int8 row", "uint4 zero g32"])
def test_integers_are_multiplied_exactly(isa: str, weight: str, tokens: int) -> None:
    spec = replace(WEIGHTS[weight], scale=formats.E8M0)
    x, layer = problem(LayerSpec(spec, QuantSpec(formats.INT8, (-1, -1))), tokens, 336, 48)
    layer = layer._replace(bias=None, input_scale=Scale(torch.full((1, 1), 0.03125)))
    exact = layer.quantized_input(x).double() @ layer.weight().double().T
    assert torch.equal(fast.linear(x, side_by_side(layer)).double(), exact)


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_the_number_of_threads_changes_nothing(tokens: int) -> None:
    x, layer = problem(E2M1, tokens, 640, 208)
    layer, before, results = side_by_side(layer), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fast.linear(x, layer))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


def test_nan_stays_in_its_token() -> None:
    for spec in (E2M1, LayerSpec(WEIGHTS["e2m1 g128"])):
        for tokens in (3, 24):
            x, layer = problem(spec, tokens, 200, 32)
            x[0, 1, 7] = torch.nan
            y = fast.linear(x, side_by_side(layer))
            assert bool(y[0, 1].isnan().all())
            assert int(y.isnan().any(-1).sum()) == 1


def test_no_tokens_are_no_results() -> None:
    for spec in (E2M1, LayerSpec(INT8_CHANNEL, QuantSpec(formats.INT8, (-1, -1)))):
        x, layer = problem(spec, 0, 264, 48)
        layer = layer._replace(input_scale=Scale(torch.ones(1, 1)))
        for same in (layer, side_by_side(layer)):
            assert fast.linear(x, same).shape == (1, 0, 48)
    conv = QConv2d(nn.Conv2d(8, 16, 3), LayerSpec(INT8_CHANNEL))
    conv.fill(encode(torch.randn(16, 72), INT8_CHANNEL), bias=torch.zeros(16))
    conv.interleave()
    assert conv(torch.empty(0, 8, 5, 5)).shape == (0, 16, 3, 3)


def test_without_such_kernels_the_rows_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (E2M1, ZERO):
        x, layer = problem(spec, 5, 264, 48)
        mixed = side_by_side(layer)
        monkeypatch.setattr(native, "level", lambda: 1)
        assert not native.interleaves(spec, (48, 264))
        assert torch.equal(fast.linear(x, mixed), fast.linear(x, layer))
        monkeypatch.undo()


def packed(spec: LayerSpec, rows: int = 48, columns: int = 264) -> tuple[QLinear, Tensor]:
    assert spec.weight is not None
    q = encode(torch.randn(rows, columns), spec.weight)
    return QLinear.pack(q, spec, None, torch.float32), torch.randn(3, columns)


@pytest.mark.parametrize("spec", [E2M1, ZERO, LayerSpec(NVFP4)], ids=["e2m1", "zero", "nvfp4"])
def test_a_layer_is_interleaved_and_saved_row_by_row(spec: LayerSpec) -> None:
    layer, x = packed(spec)
    assert layer.interleaved
    y, w, saved = layer(x), layer.decoded(), layer.state_dict()
    other = QLinear(264, 48, spec, bias=False)
    other.load_state_dict(saved)
    assert not other.interleaved
    assert torch.equal(other.decoded(), w)
    assert_close(other(x), y)
    other.interleave()
    assert torch.equal(other(x), y)
    other.interleave(False)
    assert all(torch.equal(b, saved[name]) for name, b in other.named_buffers())


def test_loading_moving_and_copying_keep_the_weight() -> None:
    layer, x = packed(ZERO)
    y, other = layer(x), packed(ZERO)[0]
    other.load_state_dict(layer.state_dict())
    for same in (other, copy.deepcopy(layer), layer.to(torch.float32), layer.cpu()):
        assert same.interleaved
        assert torch.equal(same(x), y)
    assert not layer.to("meta").interleaved


def test_another_dtype_is_that_of_the_weight_and_not_of_its_scales() -> None:
    layer, x = packed(ZERO)
    y, saved = layer(x), layer.state_dict()
    layer.to(torch.bfloat16)
    assert layer.decoded().dtype == torch.bfloat16
    assert all(torch.equal(now, saved[name]) for name, now in layer.state_dict().items())
    assert torch.equal(layer.float()(x), y)


def test_filling_anew_starts_from_rows() -> None:
    layer, _ = packed(E2M1)
    assert E2M1.weight is not None
    w = torch.randn(48, 264)
    layer.fill(encode(w, E2M1.weight))
    assert not layer.interleaved
    assert float((layer.decoded() - w).norm() / w.norm()) < 0.2


def test_ragged_layers_stay_row_by_row() -> None:
    for rows, columns in ((47, 264), (48, 260)):
        layer, x = packed(E2M1, rows, columns)
        assert not layer.interleaved
        assert_close(layer(x), reference.linear(x, layer.packed()))


def test_convolutions_take_it() -> None:
    tensor = QuantSpec(formats.INT8, (-1, -1), dynamic=True)
    weights = ("int8 row", "e3m0 row", "e4m3 row", "e3m2 row", "int4 g32")
    for weight in (WEIGHTS[name] for name in weights):
        for inputs in (tensor, replace(tensor, format=formats.E4M3), None, INT8_TOKEN):
            for images, size in ((1, 1), (2, 3), (3, 15)):
                conv = nn.Conv2d(32, 80, 3, padding=1)
                layer = QConv2d(conv, LayerSpec(weight, inputs))
                layer.fill(encode(conv.weight, weight), bias=conv.bias)
                x = torch.randn(images, 32, size, size)
                expected = layer(x)
                layer.interleave()
                assert layer.interleaved
                assert_close(layer(x), expected)


@every_level
@pytest.mark.parametrize("weight", ["int8 row", "e3m0 row", "e4m3 row", "e4m3 tensor", "e3m2 row"])
def test_many_tokens_on_one_grid_take_it(isa: str, weight: str) -> None:
    for name in (formats.INT8, formats.E4M3):
        x, layer = problem(LayerSpec(WEIGHTS[weight], QuantSpec(name, (-1, -1))), 150, 200, 112)
        layer = layer._replace(input_scale=Scale(torch.full((1, 1), 0.03125)))
        assert_close(fast.linear(x, side_by_side(layer)), reference.linear(x, layer))


def test_an_embedding_looks_rows_up() -> None:
    for weight in (INT8_CHANNEL, NVFP4, WEIGHTS["uint4 zero g32"], WEIGHTS["block"]):
        table = nn.Embedding(64, 96)
        layer = QEmbedding(table, LayerSpec(weight))
        layer.fill(encode(table.weight, weight))
        ids = torch.tensor([[0, 63, 17], [5, 5, 16]])
        expected = layer(ids)
        layer.interleave()
        assert layer.interleaved
        assert torch.equal(layer(ids), expected)
