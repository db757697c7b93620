"""torchao's weights in pieces: the header says what they are, and every change of a piece is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.contracts import CONTRACTS
from minifloat.export.native_folder import open_native
from minifloat.export.read import read_folder
from minifloat.export.verify import parse_reader, verify
from minifloat.export.write import export
from minifloat.qtensor import decode
from minifloat.spec import (
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    INT8_CHANNEL,
    NVFP4,
    LayerSpec,
    QuantSpec,
)
from tests.export.cases import BY_CONTRACT, NVFP4_INPUT, UINT4, layer_of
from tests.export.conftest import Build, config_of

DOWN = "model.layers.1.mlp.down_proj"
MIXED = (
    ("*.0.*", LayerSpec(FP8_CHANNEL, FP8_TOKEN)),
    ("*.q_proj", None),
    ("*", LayerSpec(QuantSpec(formats.INT4, (1, 32)))),
)


def header(folder: Path) -> dict[str, str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_the_header_says_the_class_of_every_tensor(build: Build, tmp_path: Path) -> None:
    source = build(MIXED, dtype=torch.bfloat16)
    export(source, "torchao", tmp_path / "out")
    said = header(tmp_path / "out")
    names = json.loads(said["tensor_names"])
    assert set(names) == set(said) - {"tensor_names", "format"}
    pieces = set(load_file(tmp_path / "out" / "model.safetensors"))
    for name in names:
        row, (module, _, leaf) = json.loads(said[name]), name.rpartition(".")
        if row["_type"] == "Tensor":
            pieces.remove(name)
            continue
        assert row["_data"]["dtype"] == {"_type": "torch.dtype", "_data": "bfloat16"}
        pieces -= {f"{module}._{leaf}_{piece}" for piece in row["_tensor_data_names"]}
    assert not pieces
    assert json.loads(said[f"{DOWN}.weight"])["_type"] == "IntxUnpackedToInt8Tensor"
    quantization = config_of(tmp_path / "out")["quantization_config"]
    assert quantization["quant_type"]["default"]["_type"] == "FqnToConfig"
    assert "model.layers.1.self_attn.q_proj" in quantization["modules_to_not_convert"]
    assert compare(tmp_path / "out", open_native(source)) == []


def test_what_torchao_does_is_known(build: Build, tmp_path: Path) -> None:
    plan = (("*.0.*", LayerSpec(FP8_CHANNEL)), ("*", BY_CONTRACT["torchao"]["int8 dynamic"]))
    export(build(plan), "torchao", tmp_path / "out")
    for reader in ("diffusers", "transformers"):
        found = {f.rule: f for f in verify(tmp_path / "out", parse_reader(reader))}
        assert found["torchao-package"].verdict == "needs"
        assert {name.split(".")[2] for name in found["torchao-dtype"].layers} == {"0"}
        assert {name.split(".")[2] for name in found["torchao-integer-inputs"].layers} == {"1"}
    export(build(MIXED, name="b"), "torchao", tmp_path / "mixed")
    found = {f.rule: f for f in verify(tmp_path / "mixed", parse_reader("diffusers"))}
    assert found["torchao-scales-take-dtype"].verdict == "differs"


def _zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}._weight_zero_point"] += 1


def _nibbles(tensors: dict[str, torch.Tensor]) -> None:
    packed = tensors[f"{DOWN}._weight_qdata"]
    tensors[f"{DOWN}._weight_qdata"] = packed >> 4 | packed << 4


def _reciprocal(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}._weight_per_tensor_scale"].reciprocal_()


def _offset(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}._weight_qdata"] ^= -128


MUTATIONS: list[tuple[LayerSpec, Callable[[dict[str, torch.Tensor]], None]]] = [
    (LayerSpec(UINT4), _zero),
    (LayerSpec(NVFP4), _nibbles),
    (LayerSpec(NVFP4), _reciprocal),
    (LayerSpec(INT8_CHANNEL), _offset),
]


@pytest.mark.parametrize(("spec", "mutate"), MUTATIONS)
def test_every_mutation_is_caught(
    spec: LayerSpec,
    mutate: Callable[[dict[str, torch.Tensor]], None],
    build: Build,
    tmp_path: Path,
) -> None:
    source, out = build(spec), tmp_path / "out"
    export(source, "torchao", out)
    tensors = load_file(out / "model.safetensors")
    mutate(tensors)
    save_file(tensors, out / "model.safetensors", header(out))
    problems = compare(out, open_native(source))
    assert len(problems) == 1 and "weights differ" in problems[0]


def test_a_zero_point_where_the_header_says_none_is_caught(build: Build, tmp_path: Path) -> None:
    source, out = build(LayerSpec(QuantSpec(formats.INT4, (1, 32)))), tmp_path / "out"
    export(source, "torchao", out)
    tensors = load_file(out / "model.safetensors")
    _zero(tensors)
    save_file(tensors, out / "model.safetensors", header(out))
    assert compare(out, open_native(source)) == [
        f"{DOWN}: _weight_zero_point holds bits that its codes do not (padding, or a constant)"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_type": "Int4Tensor"}, "its weight is torchao's Int4Tensor"),
        (
            {"_tensor_data_names": ["qdata", "scale", "act_pre_scale"]},
            "lacks _weight_act_pre_scale",
        ),
        ({"block_size": [1, 64]}, "scales"),
    ],
)
def test_headers_that_say_something_else_are_refused(
    change: dict[str, Any], words: str, build: Build, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export(build(LayerSpec(FP8_CHANNEL)), "torchao", out)
    said = header(out)
    row = json.loads(said[f"{DOWN}.weight"])
    row["_data"] |= {key: value for key, value in change.items() if key[0] != "_"}
    row |= {key: value for key, value in change.items() if key[0] == "_"}
    said[f"{DOWN}.weight"] = json.dumps(row)
    save_file(load_file(out / "model.safetensors"), out / "model.safetensors", said)
    with pytest.raises(UserError, match=words):
        verify(out)


def test_inputs_of_other_kinds_are_dropped_on_demand(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(
        build(LayerSpec(INT8_CHANNEL, BY_CONTRACT["torchao"]["int8 dynamic"].input)), "torchao", out
    )
    said = header(out)
    for name in json.loads(said["tensor_names"]):
        said[name] = said[name].replace('"SYMMETRIC"', '"ASYMMETRIC"')
    save_file(load_file(out / "model.safetensors"), out / "model.safetensors", said)
    with pytest.raises(UserError, match=r"its input is quantized by .*ASYMMETRIC.*--weights-only"):
        read_folder(out, tmp_path / "back")
    assert read_folder(out, tmp_path / "back", weights_only=True) == 14


def test_zero_points_of_torchaos_own_8_bit_integers_are_read() -> None:
    """Its quantizer stores them, though they are 0: unsigned integers of the same values."""
    contract, layer = CONTRACTS["torchao"], layer_of(LayerSpec(INT8_CHANNEL))
    scheme = contract.scheme(layer.spec, (256, 384))
    scheme = {**scheme, "_tensor_data_names": ["zero_point", "qdata", "scale"]}
    found = contract.tensors(layer, scheme)
    assert not bool(found["_weight_zero_point"].any())
    again = contract.read(scheme, found)
    assert torch.equal(decode(again.q), decode(layer.q))
    assert all(torch.equal(found[n], t) for n, t in contract.tensors(again, scheme).items())


def test_inputs_that_cannot_be_held_say_where_they_can() -> None:
    torchao = CONTRACTS["torchao"]
    for spec, words in (
        (LayerSpec(FP8_TENSOR, FP8_TENSOR), "as many axes as the input"),
        (LayerSpec(NVFP4, NVFP4_INPUT), "SM100 alone"),
        (LayerSpec(FP8_CHANNEL, replace(FP8_TENSOR, dynamic=True)), "has no input like"),
        (LayerSpec(QuantSpec(formats.INT4, (1, 32)), FP8_TOKEN), "has no input like"),
    ):
        with pytest.raises(UserError, match=words):
            torchao.scheme(spec, (256, 384))
