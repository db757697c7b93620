"""Every contract holds what it says, gives it back bit for bit, and refuses the rest with a reason."""

import json
from dataclasses import replace

import pytest
import torch

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.contracts import CONTRACTS, able
from minifloat.formats import Format
from minifloat.qtensor import decode, fake_quantize
from minifloat.spec import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MXFP4,
    MXFP6_E3M2,
    NVFP4,
    LayerSpec,
    QuantSpec,
)
from tests.export.cases import BY_CONTRACT, CASES, NVFP4_INPUT, NVFP4_PLAIN_INPUT, layer_of


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_is_written_reads_back_bit_for_bit(name: str, case: str) -> None:
    contract, layer = CONTRACTS[name], layer_of(BY_CONTRACT[name][case])
    scheme = contract.scheme(layer.spec, (256, 384))
    found = contract.tensors(layer, scheme)
    assert tuple(found) == contract.suffixes(scheme)
    again = contract.read(json.loads(json.dumps(scheme)), found)
    assert torch.equal(again.q.codes, layer.q.codes)
    assert again.q.shape == layer.q.shape
    wanted, got = decode(layer.q), decode(again.q)
    if contract.reciprocal and layer.q.scale.outer is not None:
        torch.testing.assert_close(got, wanted, rtol=2**-22, atol=0)
    else:
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_was_read_is_written_byte_for_byte(name: str, case: str) -> None:
    contract, layer = CONTRACTS[name], layer_of(BY_CONTRACT[name][case])
    scheme = contract.scheme(layer.spec, (256, 384))
    first = contract.tensors(layer, scheme)
    again = contract.read(scheme, first)
    assert contract.scheme(again.spec, (256, 384)) == scheme
    second = contract.tensors(again, scheme)
    for suffix, tensor in first.items():
        assert tensor.dtype == second[suffix].dtype
        assert tensor.shape == second[suffix].shape
        raw = (tensor.reshape(-1).view(torch.uint8), second[suffix].reshape(-1).view(torch.uint8))
        assert torch.equal(*raw), suffix


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_configuration_names_every_layer_again(name: str, case: str) -> None:
    """A model of two schemes where the contract has two, with a layer that is kept."""
    contract = CONTRACTS[name]
    specs = [BY_CONTRACT[name][case], next(iter(BY_CONTRACT[name].values()))]
    names = ["model.layers.0.mlp.down_proj", "model.layers.10.mlp.down_proj"]
    schemes = {
        layer: contract.scheme(spec, (256, 384)) for layer, spec in zip(names, specs, strict=True)
    }
    config = json.loads(json.dumps(contract.config(schemes, ["model.layers.1.mlp.down_proj"])))
    assert config["quant_method"] == name
    present = {layer: set(contract.suffixes(s)) for layer, s in schemes.items()}
    present["model.layers.1.mlp.down_proj"] = {"weight"}
    if contract.header is not None:
        plain = {"model.layers.1.mlp.down_proj.weight": torch.bfloat16}
        config["header"] = json.loads(json.dumps(contract.header(schemes, plain)))
    assert contract.schemes(config, present) == schemes


REFUSED = [
    ("compressed-tensors", QuantSpec(formats.E3M2, (1, 32), formats.E8M0, "ocp"), "it has no"),
    ("compressed-tensors", QuantSpec(formats.E2M1, (1, 64), formats.FP16), "no e2m1"),
    ("compressed-tensors", QuantSpec(formats.NF4, (1, 64)), "no nf4"),
    ("compressed-tensors", QuantSpec(formats.UINT4, (1, 64)), "no uint4"),
    ("compressed-tensors", QuantSpec(formats.INT4, (1, 80)), "384 columns are no multiple"),
    ("compressed-tensors", QuantSpec(formats.INT4, (64, 64)), "by channel or group"),
    ("modelopt", QuantSpec(formats.INT4, (1, 64)), "no algorithm has"),
    ("quark", QuantSpec(formats.E4M3, (1, 32), formats.E8M0), "its weights are"),
    ("fp8", FP8_CHANNEL, "in blocks"),
    ("humming", QuantSpec(Format.parse("e3m2.ieee"), (1, 32)), "another bias or top"),
    ("humming", QuantSpec(formats.NF4, (1, 64)), "signed floats and integers"),
    ("humming", QuantSpec(formats.E2M1, (1, 64), formats.POW4, "up"), "no pow4 scales"),
    ("sdnq", QuantSpec(Format.parse("e3m2.ieee"), (1, 32)), "another bias or top"),
    ("sdnq", QuantSpec(formats.UINT4, (1, 64), zero_point=True), "beside fp16 and bf16"),
    ("sdnq", FP8_BLOCK, "a tensor, a row or a part"),
    ("torchao", MXFP4, "inputs of their own format, not None"),
    ("torchao", QuantSpec(formats.E3M2, (1, 32)), "no e3m2"),
    ("torchao", QuantSpec(formats.E2M1, (1, 32), formats.E8M0, "up"), "own format, not None"),
    ("torchao", QuantSpec(formats.INT4, (1, 32), formats.E8M0), "no int4 with e8m0"),
]


@pytest.mark.parametrize(("name", "weight", "words"), REFUSED)
def test_what_cannot_be_held_is_refused(name: str, weight: QuantSpec, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CONTRACTS[name].scheme(LayerSpec(weight), (256, 384))


def test_block_scales_under_a_scale_of_the_run_have_no_place() -> None:
    outer = QuantSpec(formats.E4M3, (-1, -1), dynamic=True)
    spec = LayerSpec(NVFP4, replace(NVFP4, scale=outer, dynamic=True))
    for name in ("compressed-tensors", "modelopt"):
        with pytest.raises(UserError, match="e4m3/fp32 dynamic"):
            CONTRACTS[name].scheme(spec, (256, 384))


def test_block_scales_without_a_scale_have_one_that_is_1() -> None:
    spec = LayerSpec(NVFP4, NVFP4_PLAIN_INPUT)
    for name, suffix in (("compressed-tensors", "input_global_scale"), ("modelopt", "input_scale")):
        contract = CONTRACTS[name]
        scheme = contract.scheme(spec, (256, 384))
        found = contract.tensors(layer_of(spec), scheme)
        assert found[suffix] == 1
        again = contract.read(scheme, found)
        assert again.spec.input == NVFP4_INPUT
        x = torch.randn(8, 384)
        theirs, ours = (
            fake_quantize(x, again.spec.input, again.input_scale),
            fake_quantize(x, NVFP4_PLAIN_INPUT),
        )
        assert torch.equal(theirs, ours)


def test_calibrated_inputs_come_back_bit_for_bit() -> None:
    for name, case in CASES:
        contract, layer = CONTRACTS[name], layer_of(BY_CONTRACT[name][case])
        scheme = contract.scheme(layer.spec, (256, 384))
        again = contract.read(scheme, contract.tensors(layer, scheme))
        assert again.spec.calibrated == layer.spec.calibrated, case
        assert (again.input_scale is None) == (layer.input_scale is None), case
        if again.input_scale is not None and layer.input_scale is not None:
            bound = 2**-22 if contract.reciprocal and layer.spec.input.dynamic else 0
            pair = again.input_scale.stored, layer.input_scale.stored
            torch.testing.assert_close(*pair, rtol=bound, atol=0)
            assert str(again.input_scale.zero) == str(layer.input_scale.zero)


UINT8 = QuantSpec(formats.UINT8, (-1, -1), zero_point=True)


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("compressed-tensors", LayerSpec(MXFP4, FP8_TENSOR), "e4m3 weights by tensor or channel"),
        ("compressed-tensors", LayerSpec(FP8_BLOCK, FP8_TENSOR), "e4m3 weights by tensor"),
        ("compressed-tensors", LayerSpec(INT8_CHANNEL, FP8_TENSOR), "the weights' format"),
        ("compressed-tensors", LayerSpec(FP8_CHANNEL, UINT8), "uint8 beside int8"),
        (
            "compressed-tensors",
            LayerSpec(FP8_CHANNEL, QuantSpec(formats.E4M3, (-1, 1))),
            "one fp32 scale",
        ),
        ("modelopt", LayerSpec(FP8_CHANNEL, FP8_TENSOR), "no algorithm has"),
        ("modelopt", LayerSpec(FP8_TENSOR, replace(FP8_TENSOR, dynamic=True)), "no algorithm has"),
        ("quark", LayerSpec(MXFP4, FP8_TENSOR), "its inputs are"),
        ("fp8", LayerSpec(FP8_BLOCK, FP8_TENSOR), "quantize every input"),
        ("humming", LayerSpec(FP8_TENSOR, FP8_TENSOR), "server's own setting"),
    ],
)
def test_static_inputs_without_a_place_are_refused(name: str, spec: LayerSpec, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CONTRACTS[name].scheme(spec, (256, 384))


def test_the_contracts_that_can_are_found() -> None:
    assert able(LayerSpec(FP8_TENSOR, FP8_TENSOR), (256, 384)) == ["compressed-tensors", "modelopt"]
    assert able(LayerSpec(MXFP6_E3M2), (256, 384)) == ["quark", "humming", "sdnq"]
    assert able(LayerSpec(QuantSpec(formats.NF4, (1, 64))), (256, 384)) == []
