"""Packed convolutions without a decoded weight: as the reference, on odd shapes and windows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from minifloat import formats
from minifloat.kernels import native, ops, reference
from minifloat.layers import QConv2d
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import FP8_CHANNEL, INT8_CHANNEL, INT8_TOKEN, MXFP4, LayerSpec, QuantSpec

E2M1_ROW = QuantSpec(formats.E2M1)
TENSOR = QuantSpec(formats.INT8, (-1, -1))
WEIGHTS = {
    "e2m1": E2M1_ROW,
    "mxfp4": MXFP4,
    "int8": INT8_CHANNEL,
    "e4m3": FP8_CHANNEL,
    "e3m2": QuantSpec(formats.E3M2, (1, 32)),
    "uint4 zero": QuantSpec(formats.UINT4, (1, 32), zero_point=True),
}
INPUTS = {
    "none": None,
    "int8 static": TENSOR,
    "e4m3 static": QuantSpec(formats.E4M3, (-1, -1)),
    "int8 dynamic": QuantSpec(formats.INT8, (-1, -1), dynamic=True),
    "int8 pixel": INT8_TOKEN,
}
# (in, out, kernel, further arguments, height, width)
WINDOWS: list[tuple[int, int, Any, dict[str, Any], int, int]] = [
    (3, 5, 3, {"padding": 1}, 7, 9),
    (7, 66, (3, 1), {"stride": (2, 1), "padding": (2, 0)}, 11, 5),
    (5, 4, 5, {"stride": 3, "padding": 4, "dilation": 2}, 13, 12),
    (33, 6, 1, {"bias": False}, 6, 4),
    (4, 3, (2, 4), {"padding": (0, 3), "dilation": (3, 1)}, 8, 3),
]


@pytest.fixture(autouse=True)
def built() -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no fast row to test")
    torch.manual_seed(0)


def layer_of(conv: nn.Conv2d, spec: LayerSpec) -> QConv2d:
    layer = QConv2d(conv, spec)
    assert spec.weight is not None
    scale = Scale(torch.full((1, 1), 0.03)) if spec.static_input else None
    layer.fill(encode(conv.weight, spec.weight), bias=conv.bias, input_scale=scale)
    return layer


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    error = (y.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < 2e-6


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_window_equals_the_reference(
    isa: str, window: tuple[int, int, Any, dict[str, Any], int, int]
) -> None:
    channels, out, kernel, more, height, width = window
    conv = nn.Conv2d(channels, out, kernel, **more)
    for images in (1, 3):
        x = torch.randn(images, channels, height, width)
        for weight in WEIGHTS.values():
            for given in INPUTS.values():
                layer = layer_of(conv, LayerSpec(weight, given))
                assert layer.kernel("cpu").name == "cpu"
                with torch.no_grad():
                    assert_close(layer(x), reference.conv2d(x, layer.packed(), layer))


def test_more_pixels_than_a_block() -> None:
    layer = layer_of(nn.Conv2d(2, 3, 3, padding=1), LayerSpec(E2M1_ROW, TENSOR))
    x = torch.randn(2, 2, 29, 31)
    with torch.no_grad():
        assert_close(layer(x), reference.conv2d(x, layer.packed(), layer))


def test_long_strides_over_several_blocks() -> None:
    layer = layer_of(nn.Conv2d(3, 70, 3, stride=2, padding=1), LayerSpec(INT8_CHANNEL, TENSOR))
    x = torch.randn(3, 3, 41, 67)
    with torch.no_grad():
        assert_close(layer(x), reference.conv2d(x, layer.packed(), layer))


def test_nan_reaches_the_windows_that_see_it() -> None:
    x = torch.randn(2, 4, 9, 9)
    x[1, 2, 4, 4] = math.nan
    for spec in (LayerSpec(INT8_CHANNEL, TENSOR), LayerSpec(E2M1_ROW)):
        layer = layer_of(nn.Conv2d(4, 5, 3, padding=1), spec)
        with torch.no_grad():
            lost = layer(x).isnan()
            assert torch.equal(lost, reference.conv2d(x, layer.packed(), layer).isnan())
        assert int(lost.sum()) == 5 * 9


def test_groups_and_named_paddings_take_the_reference() -> None:
    for more in ({"groups": 2}, {"padding": "same"}):
        layer = layer_of(nn.Conv2d(4, 6, 3, **more), LayerSpec(INT8_CHANNEL))  # type: ignore[arg-type]
        assert layer.kernel("cpu").name == "reference"
        assert layer(torch.randn(1, 4, 6, 6)).shape[1] == 6


def test_channels_last_and_bf16() -> None:
    layer = layer_of(nn.Conv2d(8, 6, 3, padding=1), LayerSpec(E2M1_ROW, TENSOR))
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
        short = layer(x.bfloat16())
        torch.testing.assert_close(
            short.float(), layer(x.bfloat16().float()), rtol=2**-8, atol=1e-5
        )


def test_the_op_is_what_torch_asks_of_an_op() -> None:
    layer = layer_of(nn.Conv2d(4, 6, 3, padding=1), LayerSpec(E2M1_ROW, INT8_TOKEN))
    x = torch.randn(2, 4, 6, 5)
    operands = (x, *layer.packed().operands(), [3, 3, 1, 1, 1, 1, 1, 1])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.conv2d, operands, test_utils=checks)
