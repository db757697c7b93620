"""Judges of the other contracts: converters of compressed-tensors and transformers' own fp8 loader."""

from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert import ModelOptNvfp4Converter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import (
    FP8BlockDequantizer,
)
from compressed_tensors.quantization import QuantizationScheme

from minifloat import formats
from minifloat.export.contracts import CONTRACTS
from minifloat.export.write import export
from minifloat.layers import QLinear
from minifloat.qtensor import decode
from minifloat.spec import LayerSpec, QuantSpec
from tests.export.cases import BY_CONTRACT, layer_of
from tests.export.conftest import Build
from tests.export.test_judge_compressed_tensors import load

SHAPE = (256, 384)


@pytest.mark.parametrize("case", ["NVFP4", "W4A16_NVFP4"])
def test_modelopts_nvfp4_is_understood_by_a_converter(case: str) -> None:
    """The package turns our ModelOpt tensors into its own, and decodes those to our values."""
    modelopt, native = CONTRACTS["modelopt"], CONTRACTS["compressed-tensors"]
    layer = layer_of(BY_CONTRACT["modelopt"][case])
    ours = modelopt.tensors(layer, modelopt.scheme(layer.spec, SHAPE))
    converter = ModelOptNvfp4Converter(targets=["layer"])
    theirs = converter.process({f"layer.{suffix}": tensor for suffix, tensor in ours.items()})
    scheme = native.scheme(layer.spec, SHAPE)
    wanted = native.tensors(layer, scheme)
    assert {name.removeprefix("layer.") for name in theirs} == set(wanted)
    for suffix, tensor in wanted.items():
        raw = (tensor, theirs[f"layer.{suffix}"].reshape(tensor.shape))
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in raw)), suffix
    judge = BaseCompressor.get_value_from_registry(scheme["format"])
    found = judge.decompress(
        {suffix: theirs[f"layer.{suffix}"] for suffix in wanted},
        QuantizationScheme(targets=["Linear"], **scheme),
    )
    torch.testing.assert_close(found["weight"].float(), decode(layer.q), rtol=2**-7, atol=0)


@pytest.mark.parametrize("shape", [(256, 384), (200, 300)])
def test_fp8_blocks_are_dequantized_to_our_values(shape: tuple[int, int]) -> None:
    contract = CONTRACTS["fp8"]
    layer = layer_of(BY_CONTRACT["fp8"]["block"], shape)
    ours = contract.tensors(layer, contract.scheme(layer.spec, shape))
    judge = FP8BlockDequantizer(targets=["layer"], dtype=torch.float32)
    found = judge.process({f"layer.{suffix}": tensor for suffix, tensor in ours.items()})
    assert torch.equal(found["layer.weight"], decode(layer.q))


@pytest.mark.filterwarnings("ignore:.*FP8 model.*")
def test_transformers_reads_fp8_blocks_to_our_weights(build: Build, tmp_path: Path) -> None:
    """On a CPU it dequantizes to bfloat16 and says so."""
    spec = LayerSpec(
        QuantSpec(formats.E4M3, (64, 64)), QuantSpec(formats.E4M3, (1, 64), dynamic=True)
    )
    source = build(spec, dtype=torch.bfloat16)
    export(source, "fp8", tmp_path / "out")
    ours, theirs = load(source), load(tmp_path / "out")
    count = 0
    for name, layer in ours.named_modules():
        if isinstance(layer, QLinear):
            assert torch.equal(theirs.get_submodule(name).weight, layer.decoded()), name
            count += 1
    assert count == 14
