"""Every contract holds what it says, gives it back bit for bit, and refuses the rest with a reason."""

import json
from dataclasses import replace

import pytest
import torch

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.contract import Layer
from minifloat.export.contracts import CONTRACTS, able
from minifloat.formats import Format
from minifloat.qtensor import decode, encode
from minifloat.spec import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP6,
    MXFP6_E3M2,
    MXFP8,
    NVFP4,
    LayerSpec,
    QuantSpec,
)

INT4 = QuantSpec(formats.INT4, (1, 32), formats.FP16)
UINT4 = QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True)
NVFP4_INPUT = QuantSpec(formats.E2M1, (1, 16), formats.E4M3, dynamic=True)
GROUP_TOKEN = QuantSpec(formats.E4M3, (1, 128), dynamic=True)
BY_CONTRACT: dict[str, dict[str, LayerSpec]] = {
    "compressed-tensors": {
        "FP8 tensor": LayerSpec(FP8_TENSOR, replace(FP8_TENSOR, dynamic=True)),
        "FP8_DYNAMIC": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
        "FP8 weights": LayerSpec(FP8_CHANNEL),
        "FP8_BLOCK": LayerSpec(FP8_BLOCK, GROUP_TOKEN),
        "W8A8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
        "W4A16": LayerSpec(INT4),
        "W4A16_ASYM": LayerSpec(UINT4),
        "W4A16 channel": LayerSpec(QuantSpec(formats.INT4, (1, -1))),
        "W3A16": LayerSpec(QuantSpec(formats.INT3, (1, 32))),
        "W8A16": LayerSpec(QuantSpec(formats.INT8, (1, 32), formats.BF16)),
        "W4A8": LayerSpec(INT4, INT8_TOKEN),
        "W4AFP8": LayerSpec(QuantSpec(formats.INT4, (1, 128)), FP8_TOKEN),
        "NVFP4A16": LayerSpec(NVFP4),
        "NVFP4": LayerSpec(NVFP4, NVFP4_INPUT),
        "MXFP4A16": LayerSpec(MXFP4),
        "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
        "MXFP4XFP8": LayerSpec(MXFP4, GROUP_TOKEN),
        "MXFP6A16": LayerSpec(MXFP6),
        "MXFP8": LayerSpec(MXFP8, replace(MXFP8, dynamic=True)),
    },
    "modelopt": {
        "NVFP4": LayerSpec(NVFP4, NVFP4_INPUT),
        "W4A16_NVFP4": LayerSpec(NVFP4),
        "MXFP8": LayerSpec(MXFP8, replace(MXFP8, dynamic=True)),
        "FP8_PER_CHANNEL_PER_TOKEN": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    },
    "quark": {
        "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
        "MXFP4 weights": LayerSpec(MXFP4),
        "MXFP6 E2M3": LayerSpec(MXFP6, replace(MXFP6, dynamic=True)),
        "MXFP6 E3M2": LayerSpec(MXFP6_E3M2, replace(MXFP8, dynamic=True)),
    },
    "fp8": {"block": LayerSpec(FP8_BLOCK, GROUP_TOKEN)},
    "humming": {
        **{
            f"float e{e}m{m}": LayerSpec(
                QuantSpec(formats.floating(e, m), (1, 32), formats.E8M0, "up")
            )
            for e in range(1, 6)
            for m in range(8 - e)
            if e + m > 1
        },
        **{
            f"int{bits}": LayerSpec(QuantSpec(formats.integer(bits), (1, 64), formats.FP16))
            for bits in range(2, 9)
        },
        "NVFP4": LayerSpec(NVFP4),
        "channel": LayerSpec(QuantSpec(formats.E3M2, (1, -1))),
        "tensor": LayerSpec(QuantSpec(formats.E3M4, (-1, -1))),
        "block": LayerSpec(FP8_BLOCK),
        "e5m2 scales": LayerSpec(QuantSpec(formats.E2M3, (1, 32), formats.E5M2)),
    },
}
CASES = [(name, case) for name, cases in BY_CONTRACT.items() for case in cases]


def layer_of(spec: LayerSpec, shape: tuple[int, int] = (256, 384)) -> Layer:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    assert spec.weight is not None
    return Layer(spec, encode(w, spec.weight))


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
]


@pytest.mark.parametrize(("name", "weight", "words"), REFUSED)
def test_what_cannot_be_held_is_refused(name: str, weight: QuantSpec, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CONTRACTS[name].scheme(LayerSpec(weight), (256, 384))


def test_inputs_that_need_calibrated_scales_say_what_to_write() -> None:
    spec = LayerSpec(NVFP4, replace(NVFP4, dynamic=True))
    for name in ("compressed-tensors", "modelopt"):
        with pytest.raises(UserError, match="must be a constant"):
            CONTRACTS[name].scheme(spec, (256, 384))


def test_the_contracts_that_can_are_found() -> None:
    assert able(LayerSpec(MXFP6_E3M2), (256, 384)) == ["quark", "humming"]
    assert able(LayerSpec(QuantSpec(formats.NF4, (1, 64))), (256, 384)) == []
