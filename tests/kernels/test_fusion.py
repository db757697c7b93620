"""Activations that are normed, modulated or gated and put on their grid in one kernel."""

import pytest
import torch
from torch import Tensor, nn

from minifloat import formats
from minifloat.errors import UserError
from minifloat.kernels import fast, fusion, reference
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.table import pick
from minifloat.qtensor import fake_quantize
from minifloat.scales import Scale
from minifloat.spec import FP4_G128, FP8_TOKEN, INT8_TOKEN, MXFP8, QOQ_G128, LayerSpec, QuantSpec
from tests.kernels.problems import assert_close, problem

pytest.importorskip("triton", reason="triton is not installed: pip install 'minifloat[gpu]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = 6
KINDS = [
    "plain",
    "rms",
    "rms gain",
    "layer",
    "layer affine",
    "adaln",
    "silu_mul",
    "gelu",
    "gelu_tanh",
]


def fused(name: str, columns: int) -> Fusion:
    """A function with tensors of its own; AdaLN's has three images of two tokens."""
    generator = torch.Generator().manual_seed(columns)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(DEVICE)

    return {
        "plain": Fusion,
        "rms": lambda: Fusion("rms", 1e-6),
        "rms gain": lambda: Fusion("rms", 1e-5, weight=draw(columns)),
        "layer": lambda: Fusion("layer", 1e-6),
        "layer affine": lambda: Fusion("layer", 1e-5, weight=draw(columns), bias=draw(columns)),
        "adaln": lambda: Fusion("layer", 1e-6, gain=draw(3, columns), shift=draw(3, columns)),
        "silu_mul": lambda: Fusion("silu_mul", other=draw(TOKENS, columns)),
        "gelu": lambda: Fusion("gelu"),
        "gelu_tanh": lambda: Fusion("gelu_tanh"),
    }[name]()


def assert_codes(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Equal scales up to sums, and codes but for a few numbers between two of the grid."""
    torch.testing.assert_close(found[1].cpu(), expected[1].cpu(), rtol=2e-6, atol=0)
    assert found[0].dtype == expected[0].dtype
    apart = found[0].float().cpu() != expected[0].float().cpu()
    assert int(apart.sum()) <= 1 + apart.numel() // 500
    torch.testing.assert_close(
        found[0].float().cpu()[apart], expected[0].float().cpu()[apart], rtol=0.13, atol=1
    )


@pytest.mark.parametrize("columns", [5, 33, 577])
@pytest.mark.parametrize("name", KINDS)
def test_the_kernel_equals_its_readable_twin(name: str, columns: int) -> None:
    from minifloat.kernels.gpu.activations import quantized

    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(TOKENS, columns, generator=generator) + 1).to(DEVICE)
    for spec in (INT8_TOKEN, FP8_TOKEN):
        done = fused(name, columns)
        assert pick("quantize_activation", spec, "cuda").name == "triton"
        assert_codes(
            quantized(x, spec, None, done), fusion.quantize_activation(x, spec, None, done)
        )


def test_the_twin_is_what_models_compute() -> None:
    """torch's own norms and activations, and modulation as in diffusers' AdaLayerNorm."""
    x = torch.randn(TOKENS, 48)
    rms, layer = nn.RMSNorm(48, 1e-5), nn.LayerNorm(48)
    for parameter in (rms.weight, layer.weight, layer.bias):
        nn.init.normal_(parameter)
    gain, shift = torch.randn(2, 3, 48)
    modulated = nn.LayerNorm(48, elementwise_affine=False)(x.reshape(3, 2, 48))
    modulated = modulated * (1 + gain[:, None]) + shift[:, None]
    with torch.no_grad():
        for done, expected in (
            (Fusion("rms", 1e-5, rms.weight), rms(x)),
            (Fusion("layer", 1e-5, layer.weight, layer.bias), layer(x)),
            (Fusion("layer", 1e-5, gain=gain, shift=shift), modulated.reshape(6, 48)),
            (Fusion("silu_mul", other=x + 1), nn.SiLU()(x) * (x + 1)),
            (Fusion("gelu_tanh"), nn.GELU("tanh")(x)),
        ):
            torch.testing.assert_close(done.of(x), expected)
            codes, scale = fusion.quantize_activation(x, INT8_TOKEN, None, done)
            assert torch.equal(codes * scale[:, None], fake_quantize(done.of(x), INT8_TOKEN))


def test_half_precision_is_read_and_a_static_scale_used() -> None:
    from minifloat.kernels.gpu.activations import quantized

    spec = QuantSpec(formats.INT8, (-1, -1))
    static = Scale(torch.full((1, 1), 0.05, device=DEVICE))
    x = torch.randn(TOKENS, 40, device=DEVICE).half()
    done = fused("silu_mul", 40)._replace(other=x + 1)
    found = quantized(x, spec, static, done)
    assert_codes(found, fusion.quantize_activation(x, spec, static, done))
    assert found[1].unique().tolist() == [pytest.approx(0.05)]


@pytest.mark.parametrize("weight", [FP4_G128, QOQ_G128])
def test_codes_go_on_to_the_product(weight: QuantSpec) -> None:
    """RMSNorm, grid and a packed layer: two kernels, as `reference.linear` of the norm."""
    from minifloat.kernels.gpu.activations import quantized
    from minifloat.kernels.gpu.linear import multiplied

    x, layer = problem(LayerSpec(weight, INT8_TOKEN), TOKENS, 200, 24)
    done = Fusion("rms", 1e-6, torch.rand(200) + 0.5)
    codes, scale = quantized(x[0], INT8_TOKEN, None, done)
    y = multiplied(codes, scale, layer.codes, layer.scale, layer.bias, layer.spec, torch.float32)
    assert_close(y, reference.linear(done.of(x[0]), layer), within=1e-3)


def test_nan_stays_in_its_token() -> None:
    from minifloat.kernels.gpu.activations import quantized

    x = torch.randn(TOKENS, 20, device=DEVICE)
    x[2, 7] = torch.nan
    for done in (Fusion("layer", 1e-6), Fusion("gelu")):
        for way in (quantized, fusion.quantize_activation):
            codes, scale = way(x, FP8_TOKEN, None, done)
            assert scale.isnan().tolist() == [i == 2 for i in range(TOKENS)]
            assert not codes.float().isnan().any()


def test_what_does_not_fit_is_said() -> None:
    x = torch.randn(4, 8)
    for wrong, reason in {
        Fusion("gelu", weight=torch.ones(8)): "gelu takes no weight",
        Fusion("rms", weight=torch.ones(9)): "weight is for 9 columns, the input has 8",
        Fusion("layer", gain=torch.ones(1, 8)): "gain and shift come together",
        Fusion("layer", gain=torch.ones(3, 8), shift=torch.ones(3, 8)): "4 tokens are not shared",
        Fusion("silu_mul"): "two inputs of one shape",
    }.items():
        with pytest.raises(UserError, match=reason):
            wrong.of(x)
    with pytest.raises(UserError, match="no signed integers or E4M3"):
        pick("quantize_activation", MXFP8, "cuda")


def test_the_op_has_a_shape_without_a_device() -> None:
    codes, scale = fast.quantize_activation(torch.empty(5, 8, device="meta"), FP8_TOKEN)
    assert (codes.shape, codes.dtype) == ((5, 8), torch.float8_e4m3fn)
    assert scale.shape == (5,)
