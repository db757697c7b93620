"""The GPU row gives what the reference gives, in Triton's interpreter if there is no GPU.

Without a GPU activations are fp32 or fp16: the interpreter's products of bf16 are wrong.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minifloat import formats
from minifloat.kernels import reference
from minifloat.kernels.gpu import recipe
from minifloat.kernels.gpu.recipe import recipe_of
from minifloat.kernels.gpu.tile import tile_of
from minifloat.kernels.packed import PackedLinear
from minifloat.kernels.table import pick, why
from minifloat.qtensor import fake_quantize
from minifloat.scales import Scale
from minifloat.spec import (
    FP4_G128,
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP6,
    MXFP8,
    NF4_G64,
    NVFP4,
    QOQ_G128,
    LayerSpec,
    QuantSpec,
)
from tests.kernels.problems import assert_close, problem

pytest.importorskip("triton", reason="triton is not installed: pip install 'minifloat[gpu]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
M2 = QuantSpec(formats.E2M1, (1, 64), QuantSpec(formats.POW4, (1, -1)))
WEIGHTS = {
    "e2m1 g128": FP4_G128,
    "e3m0 block": QuantSpec(formats.E3M0, (16, 32)),
    "nf4": NF4_G64,
    "mxfp4": MXFP4,
    "nvfp4": NVFP4,
    "m2": M2,
    "mxfp6": MXFP6,
    "e3m2 row": QuantSpec(formats.E3M2),
    "e4m3 row": FP8_CHANNEL,
    "e4m3 tensor": FP8_TENSOR,
    "e4m3 block": FP8_BLOCK,
    "e5m2": QuantSpec(formats.E5M2, (1, 48), formats.BF16),
    "e2m5": QuantSpec(formats.E2M5),
    "int2": QuantSpec(formats.INT2, (1, 64), formats.FP16),
    "int3": QuantSpec(formats.INT3, (1, 40)),
    "int5 row": QuantSpec(formats.INT5),
    "int7": QuantSpec(formats.INT7, (1, 128)),
    "int8 row": INT8_CHANNEL,
    "uint4 zero": QuantSpec(formats.UINT4, (1, 64), zero_point=True),
    "qoq": QOQ_G128,
    "uint8 zero": QuantSpec(formats.UINT8, (1, -1), zero_point=True),
    "unsigned": QuantSpec(formats.floating(3, 3, signed=False), (1, 32)),
}
INPUTS = {
    "none": None,
    "int8": INT8_TOKEN,
    "e4m3": FP8_TOKEN,
    "int5": replace(INT8_TOKEN, format=formats.INT5),
    "e4m3 static": QuantSpec(formats.E4M3, (-1, -1)),
    "int8 once": QuantSpec(formats.INT8, (-1, -1), dynamic=True),
    "mxfp8": MXFP8,
}
SHAPES = [(1, 577, 33), (3, 129, 7), (7, 1, 1), (33, 33, 65)]  # tokens, in, out


def on_gpu(x: Tensor, layer: PackedLinear) -> Tensor:
    """The op's own code; the interpreter reads tensors of the CPU."""
    from minifloat.kernels.gpu.linear import linear

    operands = [o.to(DEVICE) if isinstance(o, Tensor) else o for o in layer.operands()]
    return linear(x.to(DEVICE), *operands).to(x.device)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight_equals_the_reference(weight: str, shape: tuple[int, int, int]) -> None:
    for given in (None, INT8_TOKEN, FP8_TOKEN):
        x, layer = problem(LayerSpec(WEIGHTS[weight], given), *shape)
        assert pick("linear", layer.spec, "cuda").name == "triton"
        assert_close(on_gpu(x, layer), reference.linear(x, layer))


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_equals_the_reference(name: str) -> None:
    for weight in (FP4_G128, M2):
        x, layer = problem(LayerSpec(weight, INPUTS[name]), 5, 301, 17)
        if layer.spec.static_input:
            layer = layer._replace(input_scale=Scale(torch.full((1, 1), 0.03)))
        assert_close(on_gpu(x, layer), reference.linear(x, layer))


@pytest.mark.parametrize("tokens", [40, 70, 130])
def test_every_tile_equals_the_reference(tokens: int) -> None:
    for given in (None, INT8_TOKEN):
        x, layer = problem(LayerSpec(FP4_G128, given), tokens, 257, 130)
        assert_close(on_gpu(x, layer), reference.linear(x, layer))


def test_programs_share_a_long_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from minifloat.kernels.gpu import linear

    monkeypatch.setattr(linear, "device_of", lambda device: (True, 132))
    x, layer = problem(LayerSpec(FP4_G128), 2, 2100, 40)
    assert tile_of(recipe_of(layer.spec, True), 2, 40, 2100, 132).split == 4
    assert_close(on_gpu(x, layer), reference.linear(x, layer))


def test_fp16_goes_in_and_out() -> None:
    for weight in (FP4_G128, NVFP4):
        x, layer = problem(LayerSpec(weight), 5, 200, 24)
        short = x.half()
        y = on_gpu(short, layer)
        assert y.dtype == torch.float16
        torch.testing.assert_close(
            y.float(), reference.linear(short.float(), layer), rtol=2e-3, atol=1e-2
        )


@pytest.mark.parametrize("fmt", [formats.E4M3, formats.INT8, formats.INT3], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_activations_are_rounded_as_everywhere(fmt: formats.Format, dtype: torch.dtype) -> None:
    from minifloat.kernels.gpu.activations import quantized

    spec = QuantSpec(fmt, (1, -1), dynamic=True)
    x = (torch.randn(9, 577) * torch.logspace(-9, 3, 577)).to(dtype)
    x[3] = 0
    codes, scales = quantized(x.to(DEVICE), spec, None)
    expected = fake_quantize(x.float(), spec)
    assert torch.equal((codes.float() * scales[:, None]).cpu(), expected)


def test_nan_stays_in_its_token() -> None:
    for given in (None, INT8_TOKEN, FP8_TOKEN):
        x, layer = problem(LayerSpec(FP4_G128, given), 3, 200, 24)
        x[0, 1, 7] = torch.nan
        y = on_gpu(x, layer)
        assert bool(y[0, 1].isnan().all())
        assert int(y.isnan().any(-1).sum()) == 1


def test_what_is_multiplied() -> None:
    """FP4 under FP8 with M2's scales is one product of FP8; other scales wait for each group's sum."""
    pure = recipe_of(LayerSpec(M2, FP8_TOKEN), True)
    assert (pure.operand, pure.exact, pure.power) == ("fp8", True, 2.0**6)
    assert tile_of(pure, 256, 4096, 4096, 132).scaled == "element"
    groups = recipe_of(LayerSpec(FP4_G128, FP8_TOKEN), True)
    assert (groups.operand, groups.exact) == ("fp8", False)
    assert tile_of(groups, 256, 4096, 4096, 132).scaled == "block"
    progressive = recipe_of(LayerSpec(QOQ_G128, INT8_TOKEN), False)
    assert (progressive.operand, progressive.exact) == ("int8", True)
    assert tile_of(progressive, 256, 4096, 4096, 132).scaled == "element"
    # E3M0 has four binades more than E2M1, and FP8 no room for them.
    assert not recipe_of(LayerSpec(replace(M2, format=formats.E3M0), FP8_TOKEN), True).exact
    assert recipe_of(LayerSpec(M2, FP8_TOKEN), False).operand == "float"  # an A100
    assert recipe_of(LayerSpec(FP4_G128, INT8_TOKEN), False).operand == "int8"
    assert recipe_of(LayerSpec(FP8_CHANNEL, INT8_TOKEN), True).operand == "float"


def test_what_it_refuses_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LayerSpec(QuantSpec(formats.E2M1, (1, 16), QuantSpec(formats.E4M3, (1, 4))))
    assert pick("linear", spec, "cuda").name == "reference"
    assert why("linear", spec, "cuda") == "triton: scales of scales are one a row or one for all"
    monkeypatch.setattr(recipe, "find_spec", lambda name: None)
    assert recipe.refuses(LayerSpec(FP4_G128)) == "triton is not installed"


def test_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    """Machine code for sm_80 and sm_90 comes out, with the tensor cores' instructions in it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_gpu"],
        check=False,
        capture_output=True,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )
    assert found.returncode == 0, found.stderr
    cases = json.loads(found.stdout)
    assert all(case["bytes"] > 10_000 for case in cases.values())
    assert cases["w4a16 many tokens"]["wgmma"]
    assert cases["w4a16 one token"]["mma.sync"]
    assert cases["w4a8 integers"]["s8.s8"]
    assert cases["w4a8 qoq"]["s8.s8"]
    assert cases["kv4"]["mma.sync"]
    assert cases["kv4 groups"]["mma.sync"]
    assert cases["w4a8 m2"]["e4m3.e4m3"]
    assert cases["activations"]["e4m3x2"]
