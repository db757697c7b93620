"""`verify` says which rule fires, and `--deep` finds every way of writing a layer wrongly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.native import configuration
from minifloat.export.native_folder import open_native
from minifloat.export.stored import Stored
from minifloat.export.verify import parse_reader, verify
from minifloat.export.write import export
from minifloat.plan import Plan
from minifloat.spec import (
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MXFP4,
    MXFP6,
    NVFP4,
    LayerSpec,
    QuantSpec,
)
from tests.command_line import minifloat
from tests.export.cases import BY_CONTRACT, CASES, UINT8_INPUT
from tests.export.conftest import Build, config_of

FEW = ("float e2m3", "int3", "channel", "uint5")
SOUND = [(n, c) for n, c in CASES if n not in ("humming", "sdnq") or c in FEW]


@pytest.mark.parametrize(("name", "case"), SOUND)
def test_every_export_is_sound_and_decodes_to_ours(
    name: str, case: str, build: Build, tmp_path: Path
) -> None:
    source = build(BY_CONTRACT[name][case])
    export(source, name, tmp_path / "out")
    assert verify(tmp_path / "out")
    assert compare(tmp_path / "out", open_native(source)) == []


def rules(folder: Path, reader: str) -> dict[str, str]:
    return {finding.rule: finding.verdict for finding in verify(folder, parse_reader(reader))}


def test_rules_fire_by_reader_and_version(build: Build, tmp_path: Path) -> None:
    export(build(LayerSpec(MXFP6), name="a"), "compressed-tensors", tmp_path / "mxfp6")
    assert rules(tmp_path / "mxfp6", "vllm==0.33") == {"mxfp6-no-scheme": "refuses"}
    assert rules(tmp_path / "mxfp6", "diffusers") == {"no-reader": "refuses"}
    assert "mxfp6-needs-0.20" in rules(tmp_path / "mxfp6", "transformers")
    export(build(LayerSpec(MXFP4), name="b"), "compressed-tensors", tmp_path / "mxfp4")
    assert rules(tmp_path / "mxfp4", "vllm")["mxfp4a16-runs-w4a4"] == "differs"
    int4 = LayerSpec(QuantSpec(formats.INT4, (1, 32), formats.BF16))
    source = build(int4, name="c", dtype=torch.bfloat16)
    export(source, "compressed-tensors", tmp_path / "int4")
    assert rules(tmp_path / "int4", "vllm") == {"": "loads"}
    int4 = LayerSpec(QuantSpec(formats.INT4, (1, 32), formats.FP16))
    source = build(int4, name="d", dtype=torch.bfloat16)
    export(source, "compressed-tensors", tmp_path / "cast")
    assert rules(tmp_path / "cast", "vllm") == {"scales-take-model-dtype": "differs"}


def test_rules_of_fused_layers_name_them(build: Build, tmp_path: Path) -> None:
    source = build((("*.k_proj", None), ("*", LayerSpec(NVFP4))), name="a")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_outer_scale"] *= 1.5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    export(source, "compressed-tensors", tmp_path / "out", separate=True)
    found = {f.rule: f for f in verify(tmp_path / "out", parse_reader("vllm"))}
    assert found["fused-scheme"].verdict == "refuses"
    assert len(found["fused-scheme"].layers) == 4
    assert found["nvfp4-shared-global"].layers == (
        "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.up_proj",
    )
    export(build(LayerSpec(FP8_TENSOR), name="b"), "compressed-tensors", tmp_path / "fp8")
    assert rules(tmp_path / "fp8", "vllm")["fp8-tensor-requantized"] == "differs"


DOWN = "model.layers.0.mlp.down_proj"


def _nibbles(tensors: dict[str, torch.Tensor]) -> None:
    name = f"{DOWN}.weight_packed"
    tensors[name] = (tensors[name] << 4) | (tensors[name] >> 4)


def _reciprocal(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.weight_global_scale"].reciprocal_()


def _bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.weight_scale"] += 1


def _sign(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.weight_packed"] ^= 8


def _norm(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] *= 2


def _input_reciprocal(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.input_scale"].reciprocal_()


def _input_zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{DOWN}.input_zero_point"] ^= -128


FP4, STATIC = LayerSpec(MXFP4), LayerSpec(FP8_TENSOR, FP8_TENSOR)
MUTATIONS = [
    (FP4, _nibbles, "weights differ"),
    (LayerSpec(NVFP4), _reciprocal, "weights differ"),
    (FP4, _bias, "weights differ"),
    (FP4, _sign, "weights differ"),
    (FP4, _norm, "model.norm.weight is not the same"),
    (STATIC, _input_reciprocal, "its input scale is"),
    (LayerSpec(INT8_CHANNEL, UINT8_INPUT), _input_zero, "its input's zero point is"),
]


@pytest.mark.parametrize(("spec", "mutate", "words"), MUTATIONS)
def test_every_mutation_is_caught(
    spec: LayerSpec, mutate: object, words: str, build: Build, tmp_path: Path
) -> None:
    source = build(spec)
    export(source, "compressed-tensors", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    mutate(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    problems = compare(tmp_path / "out", open_native(source))
    assert len(problems) == 1
    assert words in problems[0]


def test_inputs_of_another_kind_are_caught(build: Build, tmp_path: Path) -> None:
    dynamic = LayerSpec(FP8_TENSOR, replace(FP8_TENSOR, dynamic=True))
    export(build(dynamic, name="a"), "compressed-tensors", tmp_path / "dynamic")
    source = build(STATIC, name="b")
    problems = compare(tmp_path / "dynamic", open_native(source))
    assert len([p for p in problems if "its input is scaled at run time here" in p]) == 14
    export(source, "compressed-tensors", tmp_path / "weights", weights_only=True)
    assert compare(tmp_path / "weights", open_native(source)) == []


def test_rules_of_static_inputs(build: Build, tmp_path: Path) -> None:
    source, out = build(STATIC), tmp_path / "out"
    export(source, "modelopt", out)
    assert rules(out, "vllm") == {"fp8-tensor-requantized": "differs", "": "loads"}
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.input_scale"] *= 2
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    found = {f.rule: f for f in verify(out, parse_reader("vllm"))}
    assert found["static-input-shared"].verdict == "differs"
    assert len(found["static-input-shared"].layers) == 3
    tensors["model.layers.1.self_attn.k_proj.input_scale"].zero_()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"k_proj has the input scale .* no positive number"):
        verify(out)
    int8 = LayerSpec(INT8_CHANNEL, QuantSpec(formats.INT8, (-1, -1)))
    export(build(int8, name="c"), "compressed-tensors", tmp_path / "int8")
    assert rules(tmp_path / "int8", "transformers") == {"": "loads"}
    assert rules(tmp_path / "int8", "vllm") == {"": "loads"}
    channel = LayerSpec(FP8_CHANNEL, FP8_TENSOR)
    export(build(channel, name="d"), "compressed-tensors", tmp_path / "fp8")
    assert rules(tmp_path / "fp8", "vllm") == {"fp8-static-no-cpu": "needs"}


def test_stray_bits_of_the_padding_are_caught(tmp_path: Path) -> None:
    """Rows of 40 codes of 3 bits leave 8 bits of their last word empty."""
    source = tmp_path / "native"
    _odd_folder(source)
    export(source, "compressed-tensors", tmp_path / "out")
    assert compare(tmp_path / "out", open_native(source)) == []
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["layer.weight_packed"][0, -1] |= 1 << 30
    save_file(tensors, file, {"format": "pt"})
    (problem,) = compare(tmp_path / "out", open_native(source))
    assert "padding" in problem


def _odd_folder(folder: Path) -> None:
    from minifloat.layers import QLinear
    from minifloat.qtensor import encode

    spec = LayerSpec(QuantSpec(formats.INT3, (1, -1)))
    assert spec.weight is not None
    q = encode(torch.randn(5, 40), spec.weight)
    layer = QLinear.pack(q, spec, None, torch.float32)
    folder.mkdir()
    state = {f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    quantization = configuration(Plan((("*", spec),)), {"layer": Stored.of(layer)})
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))


def test_folders_that_are_not_what_they_say(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(build(LayerSpec(MXFP4)), "compressed-tensors", out)
    tensors = load_file(out / "model.safetensors")
    save_file(
        {**tensors, f"{DOWN}.weight_scale": torch.zeros(128, 7, dtype=torch.uint8)},
        out / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(UserError, match=r"down_proj has scales \[128, 7\]"):
        verify(out)
    del tensors[f"{DOWN}.weight_packed"]
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks weight_packed"):
        verify(out)
    config = config_of(out)
    config["quantization_config"]["quant_method"] = "gptq"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the quantization method 'gptq'"):
        verify(out)


def test_readers_by_name() -> None:
    assert parse_reader("vllm==0.32.1") == {"vllm": (0, 32, 1)}
    with pytest.raises(UserError, match="did you mean 'vllm'"):
        parse_reader("vlm")
    with pytest.raises(UserError, match="NAME==VERSION"):
        parse_reader("vllm==new")


def test_the_commands(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = build(LayerSpec(MXFP6)), tmp_path / "out"
    assert minifloat("export", source, "--to", "compressed-tensors", "--out", out) == 0
    assert minifloat("verify", out, "--deep", "--against", source) == 0
    assert "decodes to that of" in capsys.readouterr().out.replace("\n", " ")
    assert minifloat("verify", out, "--for", "vllm==0.33") == 1
    assert minifloat("verify", out, "--deep") == 2
    assert minifloat("export", source, "--to", "fp8", "--out", tmp_path / "no") == 2
    assert "quark, humming and sdnq can" in capsys.readouterr().err
