"""Layers whose rows and activations have one scale: windows are not copied, weights change order."""

import math

import pytest
import torch
from torch import Tensor, nn

from minifloat import formats
from minifloat.formats import Format
from minifloat.kernels import native, reference
from minifloat.layers import QConv2d, QLayer, QLinear
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec
from tests.kernels.problems import assert_close

PAIRS = {
    "int4 x int8": (formats.INT4, formats.INT8),
    "int8 x int8": (formats.INT8, formats.INT8),
    "e3m0 x int8": (formats.E3M0, formats.INT8),
    "e2m1 x e4m3": (formats.E2M1, formats.E4M3),
    "e3m2 x e2m5": (formats.E3M2, formats.E2M5),
    "e4m3 x fp32": (formats.E4M3, None),
}
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@pytest.fixture(autouse=True)
def built() -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no fast row to test")
    torch.manual_seed(0)


def packed(layer: nn.Conv2d | nn.Linear, pair: tuple[Format, Format | None]) -> QLayer:
    weight = QuantSpec(pair[0])
    spec = LayerSpec(weight, None if pair[1] is None else QuantSpec(pair[1], (-1, -1)))
    scale = Scale(torch.full((1, 1), 0.03)) if spec.static_input else None
    q = encode(layer.weight, weight)
    if isinstance(layer, nn.Linear):
        return QLinear.pack(q, spec, layer.bias, torch.float32, None, scale)
    made = QConv2d(layer, spec)
    made.fill(q, bias=layer.bias, input_scale=scale)
    return made


def expected(layer: QLayer, x: Tensor) -> Tensor:
    if isinstance(layer, QConv2d):
        return reference.conv2d(x, layer.packed(), layer)
    return reference.linear(x, layer.packed())


@pairs
@torch.no_grad()
def test_more_channels_than_are_brought_into_order_at_once(
    pair: tuple[Format, Format | None],
) -> None:
    for conv in (nn.Conv2d(131, 97, 3, padding=1), nn.Conv2d(1037, 20, 1), nn.Conv2d(9, 65, 8)):
        layer = packed(conv, pair)
        x = torch.randn(2, conv.in_channels, 9, 8)
        assert_close(layer(x), expected(layer, x))


@pairs
@torch.no_grad()
def test_linear_layers_of_many_tokens(pair: tuple[Format, Format | None]) -> None:
    for columns, rows in ((8, 5), (36, 64), (1040, 70), (33, 3)):
        layer = packed(nn.Linear(columns, rows), pair)
        for tokens in (256, 577):
            x = torch.randn(tokens, columns)
            assert_close(layer(x), expected(layer, x))


@pairs
@torch.no_grad()
def test_threads_and_memory_change_no_bit(pair: tuple[Format, Format | None]) -> None:
    wide = torch.randn(3, 40, 17, 13)
    layer = packed(nn.Conv2d(24, 130, 3, stride=2), pair)
    y = layer(wide[:, 8:32].contiguous())
    assert torch.equal(layer(wide[:, 8:32]), y)  # a span of channels, read where it lies
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(layer(wide[:, 8:32]), y)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_nan_of_a_token_stays_its_own() -> None:
    layer = packed(nn.Linear(16, 8), PAIRS["int8 x int8"])
    x = torch.randn(300, 16)
    x[7, 3] = math.nan
    lost = layer(x).isnan()
    assert lost[7].all()
    assert int(lost.sum()) == 8


@torch.no_grad()
def test_brief_floats_come_and_go() -> None:
    layer = packed(nn.Conv2d(12, 18, 3, padding=1), PAIRS["e2m1 x e4m3"])
    x = torch.randn(1, 12, 11, 7).bfloat16()
    assert_close(layer(x), layer(x.float()).bfloat16(), within=1e-3)
