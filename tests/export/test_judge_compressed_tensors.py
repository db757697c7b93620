"""The compressed-tensors package, which nobody here wrote, judges what we write for it.

It decompresses our tensors to our decoded values, and transformers loads whole folders through it.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from safetensors.torch import load_file, save_file
from torch import nn

from minifloat import formats
from minifloat.export.contract import Layer
from minifloat.export.contracts import CONTRACTS
from minifloat.export.write import export
from minifloat.layers import QLinear
from minifloat.qtensor import decode, fake_quantize
from minifloat.rounding import decode as decode_codes
from minifloat.scales import Scale
from tests.export.cases import BY_CONTRACT, layer_of
from tests.export.conftest import Build, config_of

CT = CONTRACTS["compressed-tensors"]
CASES = BY_CONTRACT["compressed-tensors"]
# The package computes these in bfloat16: exact for powers of two, one more rounding for NVFP4.
_BFLOAT = ("NVFP4", "NVFP4A16")


@pytest.mark.parametrize("case", CASES)
def test_the_package_decompresses_to_our_values(case: str) -> None:
    layer = layer_of(CASES[case])
    scheme = CT.scheme(layer.spec, (256, 384))
    tensors = CT.tensors(layer, scheme)
    if tensors["weight_scale"].dtype in (torch.float16, torch.bfloat16):
        tensors["weight_scale"] = tensors["weight_scale"].float()  # its product takes this dtype
    judge = BaseCompressor.get_value_from_registry(scheme["format"])
    found = judge.decompress(tensors, QuantizationScheme(targets=["Linear"], **scheme))
    wanted = decode(layer.q)
    if case in _BFLOAT:
        torch.testing.assert_close(found["weight"].float(), wanted, rtol=2**-7, atol=0)
    else:
        assert torch.equal(found["weight"].float(), wanted)


@pytest.mark.parametrize("case", CASES)
def test_the_package_compresses_our_values_to_our_bytes(case: str) -> None:
    """Given our decoded weight and our scales, it writes what we write, but drops E2M1's -0."""
    layer = layer_of(CASES[case])
    if layer.q.spec.format == formats.E2M1:
        codes = torch.where(layer.q.codes == 8, 0, layer.q.codes).to(torch.uint8)
        layer = replace(layer, q=replace(layer.q, codes=codes))
    scheme = CT.scheme(layer.spec, (256, 384))
    ours = CT.tensors(layer, scheme)
    judge = BaseCompressor.get_value_from_registry(scheme["format"])
    state = {"weight": decode(layer.q), **_scales(layer, ours)}
    theirs = judge.compress(state, QuantizationScheme(targets=["Linear"], **scheme))
    given = {"input_global_scale", "input_scale", "input_zero_point", "weight_global_scale"}
    for suffix in set(ours) - given:
        if suffix == "weight_scale" and ours[suffix].dtype != theirs[suffix].dtype:
            continue  # handed over in fp32, since the package divides in the dtype of the scales
        one, two = ours[suffix], theirs[suffix].reshape(ours[suffix].shape)
        assert one.dtype == two.dtype, suffix
        assert torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8)), (
            suffix
        )


def _scales(layer: Layer, ours: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's scales in numbers, as the package takes them."""
    fmt, stored = layer.q.spec.scale_format, layer.q.scale.stored
    values = stored.float() if fmt.is_native else decode_codes(stored, fmt)
    found = {"weight_scale": values.reshape(1) if values.numel() == 1 else values}
    if layer.q.scale.zero is not None:
        found["weight_zero_point"] = (layer.q.scale.zero.int() - 8).to(torch.int8)
    if "weight_global_scale" in ours:
        found["weight_global_scale"] = ours["weight_global_scale"]
    return found


def test_the_packages_own_functions_decode_nvfp4_in_fp32() -> None:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    layer = layer_of(CASES["NVFP4A16"])
    tensors = CT.tensors(layer, CT.scheme(layer.spec, (256, 384)))
    codes = unpack_fp4_from_uint8(tensors["weight_packed"], 256, 384, dtype=torch.float32)
    scale = tensors["weight_scale"].float() / tensors["weight_global_scale"]
    found = codes * scale.repeat_interleave(16, 1)
    torch.testing.assert_close(found, decode(layer.q), rtol=2**-22, atol=0)


# Inputs that transformers' emulation scales by rules of its own: integers by amax / 127.5 in place of
# amax / 127, MX by rounding the exponent where OCP's rule cuts it, NVFP4 by block scales in bfloat16,
# of which one in twenty falls on another number of E4M3. Their weights are judged below.
OWN_INPUT_RULE = ("W8A8", "W4A8", "MXFP4", "MXFP4XFP8", "MXFP8", "NVFP4")
# transformers 5.23 lays out asymmetric models without packing their zero points, unless it dequantizes.
DEQUANTIZED_ONLY = ("W4A16_ASYM",)
LOADED = [case for case in CASES if case not in OWN_INPUT_RULE + DEQUANTIZED_ONLY]


@pytest.mark.parametrize("case", LOADED)
def test_transformers_gives_our_logits(
    case: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checkpoint is on trial and not our kernels: sums in another order, 1e-7 apart, move an
    # activation that lies between two numbers of a grid to the other one, and logits by 1 %.
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")
    dtype = dtype_of(case)
    source = build(CASES[case], dtype=dtype)
    export(source, "compressed-tensors", tmp_path / "out")
    ours, theirs = (_logits(load(folder)) for folder in (source, tmp_path / "out"))
    error = (ours - theirs).norm() / ours.norm()
    assert float(error) < (2e-2 if dtype == torch.bfloat16 else 2e-3)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case].static_input])
def test_transformers_takes_our_calibrated_inputs(
    case: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bits of fp32; one layer's scale off by a tenth is seen at once."""
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")  # as above
    source = build(CASES[case])
    export(source, "compressed-tensors", tmp_path / "out")
    ours, theirs = (_logits(load(folder)) for folder in (source, tmp_path / "out"))
    assert float((ours - theirs).norm() / ours.norm()) < 1e-6
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.input_scale"] *= 1.1
    save_file(tensors, file, {"format": "pt"})
    assert float((ours - _logits(load(tmp_path / "out"))).norm() / ours.norm()) > 1e-3


def test_transformers_takes_our_scale_of_block_scales(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its bfloat16 weights, but computed in float32, its NVFP4 logits are ours to the last bits."""
    monkeypatch.setenv("MINIFLOAT_KERNEL", "reference")
    source = build(CASES["NVFP4"], dtype=torch.bfloat16)
    export(source, "compressed-tensors", tmp_path / "out")
    ours, theirs = (load(folder) for folder in (source, tmp_path / "out"))
    _logits(theirs)  # its first forward pass decodes the weights
    for model in (ours, theirs):
        nn.Module.float(model)  # transformers' own refuses quantized models
    for name, layer in ours.named_modules():
        if isinstance(layer, QLinear):
            layer._held = theirs.get_submodule(name).weight.detach()
    wanted = _logits(ours)
    assert float((wanted - _logits(theirs)).norm() / wanted.norm()) < 1e-6
    theirs.model.layers[1].mlp.down_proj.input_global_scale.data.mul_(1.1)
    assert float((wanted - _logits(theirs)).norm() / wanted.norm()) > 1e-3


def test_the_package_puts_inputs_on_our_grid_under_our_calibrated_scale() -> None:
    """Bit for bit, and on another grid where the scale is 1, as inputs of 1000 overflow E4M3's 448."""
    layer = layer_of(CASES["NVFP4"])
    scheme = CT.scheme(layer.spec, (256, 384))
    args = QuantizationScheme(targets=["Linear"], **scheme).input_activations
    module = nn.Linear(384, 256)
    module.quantization_status = QuantizationStatus.FROZEN
    x = torch.randn(64, 384, generator=torch.Generator().manual_seed(2)) * 1000
    assert layer.spec.input is not None and layer.input_scale is not None
    for outer in (x.abs().max() / (448 * 6), torch.ones(())):
        layer = replace(layer, input_scale=Scale(outer.reciprocal().reciprocal().reshape(1, 1)))
        module.input_global_scale = CT.tensors(layer, scheme)["input_global_scale"]
        theirs = forward_quantize(module, x, "input", args)
        ours = fake_quantize(x, layer.spec.input, layer.input_scale)
        torch.testing.assert_close(theirs, ours, rtol=2**-22, atol=0)
        lost = (ours - x).norm() / x.norm()
        assert float(lost) < 0.1 or outer == 1


@pytest.mark.parametrize("case", CASES)
def test_transformers_dequantizes_to_our_weights(case: str, build: Build, tmp_path: Path) -> None:
    source = build(CASES[case], dtype=dtype_of(case))
    export(source, "compressed-tensors", tmp_path / "out")
    config = config_of(tmp_path / "out")
    config["quantization_config"]["dequantize"] = True
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    ours, theirs = load(source), load(tmp_path / "out")
    bounds = {**dict.fromkeys(_BFLOAT, 2**-7), "W8A16": 2**-7}
    count = 0
    for name, layer in ours.named_modules():
        if isinstance(layer, QLinear):
            found = theirs.get_submodule(name).weight.float()
            bound = bounds.get(case, 2**-10 if "W" in case else 0)  # a product in the scale's dtype
            torch.testing.assert_close(found, layer.decoded().float(), rtol=bound, atol=0)
            count += 1
    assert count == 14


def dtype_of(case: str) -> torch.dtype:
    """The package's 4-bit and MX formats need a bfloat16 model."""
    return torch.bfloat16 if "FP4" in case or case.startswith("MX") else torch.float32


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def _logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2 * 32).view(2, 32) % 160
    with torch.no_grad():
        found: torch.Tensor = model(tokens).logits.float()
    return found
