"""Every fast row gives what the reference gives, on odd shapes and for all that it accepts."""

from dataclasses import replace

import pytest
import torch

from minifloat import formats
from minifloat.kernels import cpu, native, reference
from minifloat.kernels.packed import PackedLinear
from minifloat.kernels.table import pick
from minifloat.packing import pack
from minifloat.qtensor import encode
from minifloat.spec import FP8_CHANNEL, INT4_G128, MXFP4, MXFP8, NVFP4, LayerSpec, QuantSpec

M2 = QuantSpec(formats.E2M1, (1, 64), QuantSpec(formats.POW4, (1, -1)))
SPECS = {
    "e2m1 g128": QuantSpec(formats.E2M1, (1, 128), formats.FP16),
    "e3m0 row": QuantSpec(formats.E3M0, (1, -1)),
    "int4 g32": replace(INT4_G128, tile=(1, 32)),
    "nf4 g64": QuantSpec(formats.NF4, (1, 64)),
    "e1m2 bf16": QuantSpec(formats.E1M2, (1, 96), formats.BF16),
    "mxfp4": MXFP4,
    "m2": M2,
    "e4m3 row": FP8_CHANNEL,
    "mxfp8": MXFP8,
    "int8 g48": QuantSpec(formats.INT8, (1, 48), formats.FP16),
    "e5m2": QuantSpec(formats.E5M2, (1, 128)),
    "e3m4": QuantSpec(formats.E3M4, (1, 64)),
    "e2m5": QuantSpec(formats.E2M5, (1, -1)),
}
# (tokens, in, out): one of each, ragged groups, odd widths, and more tokens than a tile.
SHAPES = [(1, 576, 48), (2, 1, 5), (3, 31, 7), (4, 128, 16), (5, 301, 33), (16, 1536, 9)]


@pytest.fixture(autouse=True)
def built() -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no fast row to test")


def problem(
    spec: LayerSpec, tokens: int, columns: int, rows: int, rank: int = 0
) -> tuple[torch.Tensor, PackedLinear]:
    generator = torch.Generator().manual_seed(columns)
    assert spec.weight is not None
    q = encode(torch.randn(rows, columns, generator=generator), spec.weight)
    branch = None
    if rank:
        branch = (torch.randn(rows, rank).half(), torch.randn(rank, columns).half())
    bias = torch.randn(rows, generator=generator)
    layer = PackedLinear(
        pack(q.codes, spec.weight.format.bits),
        q.scale,
        spec,
        (rows, columns),
        torch.float32,
        bias,
        branch,
    )
    return torch.randn(1, tokens, columns, generator=generator), layer


def assert_close(y: torch.Tensor, expected: torch.Tensor) -> None:
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    error = (y.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < 2e-6


@pytest.mark.parametrize("isa", native.LEVELS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_path_equals_the_reference(
    isa: str, name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = native.library()
    assert lib is not None
    wanted = native.LEVELS.index(isa)
    if lib.mf_level(wanted) != wanted:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setattr(native, "level", lambda: wanted)
    x, layer = problem(LayerSpec(weight=SPECS[name]), *shape)
    row = pick("linear", layer.spec, "cpu")
    assert row.name != "reference"
    assert_close(row.run(x, layer), reference.linear(x, layer))
    if row.name == "cpu-w4":
        assert torch.equal(cpu.decoded_w4(layer), layer.weight())


def test_quantized_input_output_and_branch() -> None:
    token = QuantSpec(formats.E4M3, (1, -1), dynamic=True)
    x, layer = problem(LayerSpec(SPECS["e2m1 g128"], token), 3, 200, 24, rank=4)
    assert_close(cpu.linear_w4(x, layer), reference.linear(x, layer))
    y = cpu.linear_w4(x, replace(layer, spec=replace(layer.spec, output=token)))
    assert y.unique().numel() < y.numel()


def test_many_tokens_and_gradients_take_the_reference() -> None:
    x, layer = problem(LayerSpec(weight=SPECS["mxfp4"]), cpu.FEW + 1, 64, 8)
    assert torch.equal(cpu.linear_w4(x, layer), reference.linear(x, layer))
    few = x[:, :2].clone().requires_grad_()
    cpu.linear_w4(few, layer).sum().backward()
    assert few.grad is not None


def test_same_threads_same_result() -> None:
    x, layer = problem(LayerSpec(weight=SPECS["mxfp4"]), 3, 640, 64)
    first = cpu.linear_w4(x, layer)
    assert all(torch.equal(cpu.linear_w4(x, layer), first) for _ in range(5))


@pytest.mark.parametrize(
    "weight",
    [
        NVFP4,  # groups of 16 do not start on a step
        QuantSpec(formats.floating(5, 2, top="finite"), (1, 128)),  # beyond fp16
        QuantSpec(formats.UINT4, (1, 128), zero_point=True),
        QuantSpec(formats.E2M1, (128, 128)),
    ],
    ids=str,
)
def test_what_it_does_not_take_goes_to_the_reference(weight: QuantSpec) -> None:
    assert pick("linear", LayerSpec(weight=weight), "cpu").name == "reference"


def test_a_row_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = LayerSpec(weight=SPECS["mxfp4"])
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")
    assert pick("linear", spec, "cpu").name == "reference"
