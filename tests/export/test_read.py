"""Import: the same codes, the same logits, and back out byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.native_folder import open_native
from minifloat.export.read import read_folder
from minifloat.export.write import export
from minifloat.spec import (
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    MXFP4,
    NVFP4,
    LayerSpec,
    QuantSpec,
)
from tests.export.cases import BY_CONTRACT, CASES, NVFP4_INPUT
from tests.export.conftest import Build, config_of
from tests.export.test_write import digest

FEW = ("float e2m3", "int3", "channel", "uint5")
SOME = [(n, c) for n, c in CASES if n not in ("humming", "sdnq") or c in FEW]


@pytest.mark.parametrize(("name", "case"), SOME)
def test_export_import_export_is_byte_identical(
    name: str, case: str, build: Build, tmp_path: Path
) -> None:
    export(build(BY_CONTRACT[name][case]), name, tmp_path / "one")
    read_folder(tmp_path / "one", tmp_path / "back")
    export(tmp_path / "back", name, tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_mixed_plan_comes_back(build: Build, tmp_path: Path) -> None:
    fp8 = LayerSpec(FP8_CHANNEL, FP8_TOKEN)
    source = build((("*.0.*", fp8), ("*.1.mlp.down_proj", None), ("*", LayerSpec(MXFP4))))
    export(source, "compressed-tensors", tmp_path / "one")
    read_folder(tmp_path / "one", tmp_path / "back")
    assert torch.equal(_logits(source), _logits(tmp_path / "back"))
    export(tmp_path / "back", "compressed-tensors", tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def _logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(64).view(2, 32)).logits
    return found


def test_one_contract_to_another(build: Build, tmp_path: Path) -> None:
    export(build(LayerSpec(NVFP4)), "modelopt", tmp_path / "a")
    read_folder(tmp_path / "a", tmp_path / "b")
    export(tmp_path / "b", "compressed-tensors", tmp_path / "c")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "c"))
    name = "model.layers.1.self_attn.k_proj"
    assert torch.equal(one[f"{name}.weight"], two[f"{name}.weight_packed"])
    assert torch.equal(
        one[f"{name}.weight_scale_2"].reciprocal(), two[f"{name}.weight_global_scale"][0]
    )


@pytest.mark.parametrize("case", ["FP8", "W8A8 static asymmetric"])
def test_static_inputs_come_back(case: str, build: Build, tmp_path: Path) -> None:
    source = build(BY_CONTRACT["compressed-tensors"][case])
    export(source, "compressed-tensors", tmp_path / "one")
    read_folder(tmp_path / "one", tmp_path / "back")
    assert torch.equal(_logits(source), _logits(tmp_path / "back"))
    one, two = (load_file(f / "model.safetensors") for f in (source, tmp_path / "back"))
    names = [n for n in one if n.endswith(("input_scale", "input_zero_point"))]
    assert len(names) == 14 * (1 + ("asymmetric" in case))
    assert all(torch.equal(one[name], two[name]) for name in names)


def test_static_fp8_goes_from_one_contract_to_another(build: Build, tmp_path: Path) -> None:
    export(build(BY_CONTRACT["modelopt"]["FP8"]), "modelopt", tmp_path / "a")
    read_folder(tmp_path / "a", tmp_path / "b")
    export(tmp_path / "b", "compressed-tensors", tmp_path / "c")
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "c"))
    for name in one:
        assert torch.equal(one[name].reshape(two[name].shape), two[name]), name


def test_static_inputs_by_group_are_refused(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(build(LayerSpec(FP8_CHANNEL, FP8_TENSOR)), "compressed-tensors", out)
    config = config_of(out)
    given = config["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    given |= {"strategy": "group", "group_size": 32}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"no layer like .*_proj: its input has .* by group.*--weights-only"
    ):
        read_folder(out, tmp_path / "back")
    assert read_folder(out, tmp_path / "back", weights_only=True) == 14


def edit(folder: Path, name: str, value: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["compressed-tensors", "modelopt"])
def test_calibrated_scales_over_block_scales_come_back(
    name: str, build: Build, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", build(LayerSpec(NVFP4, NVFP4_INPUT))
    export(source, name, out)
    assert compare(out, open_native(source)) == []
    read_folder(out, tmp_path / "back")
    layer = "model.layers.1.mlp.down_proj"
    scales = [open_native(folder).input_scale(layer) for folder in (source, tmp_path / "back")]
    one, two = (float(scale.stored) for scale in scales if scale is not None)
    assert one != 1 and abs(one / two - 1) < 2**-22
    edit(out, f"{layer}.{INPUT[name]}", torch.tensor(0.25).reshape(() if name == "modelopt" else 1))
    assert [line[: len(layer) + 20] for line in compare(out, open_native(source))] == [
        f"{layer}: its input scale is"
    ]
    assert read_folder(out, tmp_path / "weights", weights_only=True) == 14
    rules: Any = config_of(tmp_path / "weights")["quantization_config"]["rules"]
    assert rules[0][1]["input"] is None


INPUT = {"compressed-tensors": "input_global_scale", "modelopt": "input_scale"}


def test_what_has_no_place_is_refused(build: Build, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    export(build(LayerSpec(QuantSpec(formats.INT4, (1, 32)))), "compressed-tensors", out)
    with pytest.raises(UserError, match="name another folder"):
        read_folder(out, out)
    edit(out, "model.layers.1.mlp.down_proj.weight_g_idx", torch.zeros(256, dtype=torch.int32))
    with pytest.raises(UserError, match="sorts its columns"):
        read_folder(out, back)
    config = config_of(out)
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8}
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="KV cache"):
        read_folder(out, back)
    assert not back.exists()
