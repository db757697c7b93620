"""Packed models are compiled and exported whole: no graph break, the same numbers, in every row."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from minifloat import formats
from minifloat.kernels import native, ops
from minifloat.layers import QConv2d, QLinear
from minifloat.models.outside import outside_layers
from minifloat.outside import quantize_outside, specs_outside
from minifloat.plan import Plan
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import (
    FP4_G128,
    FP8_CHANNEL,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP8,
    NF4_G64,
    NVFP4,
    LayerSpec,
    QuantSpec,
)

M2 = QuantSpec(formats.E2M1, (1, 64), QuantSpec(formats.POW4, (1, -1)))
SPECS = {
    "w4a8": LayerSpec(FP4_G128, FP8_TOKEN),
    "w4a8 int": LayerSpec(FP4_G128, INT8_TOKEN),
    "w8a8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
    "w8a8 float": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    "w4a16": LayerSpec(FP4_G128),
    "mx": LayerSpec(MXFP4, MXFP8),
    "nv": LayerSpec(NVFP4, NVFP4),
    "m2": LayerSpec(M2, FP8_TOKEN, FP8_TOKEN),
    "table": LayerSpec(NF4_G64),
}


def packed(linear: nn.Linear, spec: LayerSpec) -> QLinear:
    assert spec.weight is not None
    q = encode(linear.weight.detach(), spec.weight)
    bias = None if linear.bias is None else linear.bias.detach()
    given = Scale(torch.full((1, 1), 2e-3)) if spec.calibrated is not None else None
    return QLinear.pack(q, spec, bias, torch.float32, input_scale=given)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def assert_compiles(module: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        whole = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert torch.equal(whole(*inputs), module(*inputs))


@pytest.mark.parametrize("name", ["w4a8", "w8a8", "mx", "nv", "m2", "table"])
def test_a_layer_of_the_reference_compiles_without_a_break(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")
    layer = packed(nn.Linear(200, 24), SPECS[name])
    assert_compiles(layer, torch.randn(2, 3, 200))


@pytest.mark.parametrize("name", SPECS)
def test_the_op_is_what_torch_asks_of_an_op(name: str) -> None:
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no op to check")
    layer = packed(nn.Linear(200, 24), replace(SPECS[name], output=None))
    operands = (torch.randn(40, 200), *layer.packed().operands())
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.linear, operands, test_utils=checks)


@pytest.mark.parametrize("name", ["w4a8", "w4a16"])
def test_a_language_model_with_a_packed_head_compiles_without_a_break(name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 50}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**size, **heads, tie_word_embeddings=True)).eval()
    plan = Plan((("lm_head", SPECS[name]),))
    quantize_outside(model, specs_outside(model, plan.resolve((), outside_layers(model))))
    for path, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.set_submodule(path, packed(module, SPECS[name]))
    tokens = torch.randint(0, 50, (1, 7))
    with torch.no_grad():
        whole = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled = whole(tokens, use_cache=False).logits
        torch.testing.assert_close(compiled, model(tokens, use_cache=False).logits)


@pytest.mark.parametrize("static", [False, True])
def test_a_convolution_compiles_without_a_break(static: bool) -> None:
    conv = nn.Conv2d(5, 6, 3, padding=1)
    tensor = QuantSpec(formats.INT8, (-1, -1))
    spec = LayerSpec(QuantSpec(formats.E2M1), tensor if static else INT8_TOKEN)
    layer = QConv2d(conv, spec)
    scale = Scale(torch.full((1, 1), 0.02)) if static else None
    assert spec.weight is not None
    layer.fill(encode(conv.weight, spec.weight), bias=conv.bias, input_scale=scale)
    assert_compiles(layer, torch.randn(2, 5, 8, 7))


@pytest.mark.parametrize("name", ["w4a8", "mx"])
def test_a_packed_model_is_exported(name: str) -> None:
    model = nn.Sequential(
        packed(nn.Linear(96, 64), SPECS[name]), nn.SiLU(), packed(nn.Linear(64, 40), SPECS[name])
    )
    x = torch.randn(3, 96)
    tokens = torch.export.Dim("tokens", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: tokens},))
        for count in (2, 3, 33):
            x = torch.randn(count, 96)
            assert torch.equal(program.module()(x), model(x))
