"""Folders: streamed, whole or not at all, the same bytes every time, and refused with a reason."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.write import export
from minifloat.shards import entries, write
from minifloat.spec import (
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    MXFP4,
    NVFP4,
    LayerSpec,
    QuantSpec,
)
from tests.export.conftest import Build, config_of

W4A16 = LayerSpec(QuantSpec(formats.INT4, (1, 32), formats.FP16))


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_folder_has_everything_a_reader_needs(build: Build, tmp_path: Path) -> None:
    done = export(build(W4A16), "compressed-tensors", tmp_path / "out")
    assert done["layers"] == 14
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "export.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
    }
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.layers.0.mlp.down_proj.weight_packed"].shape == (128, 32)
    assert found["model.layers.0.mlp.down_proj.weight_packed"].dtype == torch.int32
    assert "model.embed_tokens.weight" in found
    assert not list(tmp_path.glob("*.partial"))


def test_the_same_folder_gives_the_same_bytes(build: Build, tmp_path: Path) -> None:
    source = build(W4A16)
    for out in ("one", "two"):
        export(source, "humming", tmp_path / out)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    export(source, "humming", tmp_path / "one")  # over a former export
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_two_schemes_are_mixed_precision_with_names(build: Build, tmp_path: Path) -> None:
    fp8 = LayerSpec(FP8_CHANNEL, FP8_TOKEN)
    source = build((("*.0.*", fp8), ("*.1.mlp.down_proj", None), ("*", LayerSpec(MXFP4))))
    export(source, "compressed-tensors", tmp_path / "out")
    config = config_of(tmp_path / "out")["quantization_config"]
    assert config["format"] == "mixed-precision"
    groups = config["config_groups"].values()
    assert {group["format"] for group in groups} == {"float-quantized", "mxfp4-pack-quantized"}
    assert sum(len(group["targets"]) for group in groups) == 13
    assert "model.layers.1.mlp.down_proj" in config["ignore"]


def test_fused_layers_must_share_a_scheme(build: Build, tmp_path: Path) -> None:
    fp8 = LayerSpec(FP8_CHANNEL, FP8_TOKEN)
    for k in (LayerSpec(MXFP4), None):
        source = build((("*.k_proj", k), ("*", fp8)), name=f"native-{k is None}")
        out = tmp_path / f"out-{k is None}"
        with pytest.raises(UserError, match=r"k_proj, q_proj, v_proj of .* have different specs"):
            export(source, "compressed-tensors", out)
        assert not out.exists()
        assert export(source, "compressed-tensors", out, separate=True)["layers"] == 14 - 2 * (
            k is None
        )


def test_fused_layers_must_share_their_outer_scale(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(NVFP4))
    export(source, "modelopt", tmp_path / "shared")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_outer_scale"] *= 1.5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="have outer scales of their own"):
        export(source, "modelopt", tmp_path / "out")


STATIC = LayerSpec(FP8_TENSOR, FP8_TENSOR)


def test_fused_layers_must_share_their_input_scale(build: Build, tmp_path: Path) -> None:
    source = build(STATIC)
    export(source, "modelopt", tmp_path / "shared")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.input_scale"] *= 1.5
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="have input scales of their own"):
        export(source, "modelopt", tmp_path / "out")
    export(source, "modelopt", tmp_path / "out", separate=True)


def test_static_inputs_name_the_contracts_that_can(build: Build, tmp_path: Path) -> None:
    source = build(STATIC)
    with pytest.raises(UserError, match="compressed-tensors and modelopt can"):
        export(source, "humming", tmp_path / "out")
    export(source, "humming", tmp_path / "out", weights_only=True)
    assert not any(
        n.endswith("input_scale") for n in load_file(tmp_path / "out" / "model.safetensors")
    )
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.input_scale"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model.layers.1.mlp.up_proj.input_scale"):
        export(source, "modelopt", tmp_path / "out")


def test_refusals_name_the_layer_and_the_contracts_that_can(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(QuantSpec(formats.E3M2, (1, 32), formats.E8M0, "ocp")))
    with pytest.raises(UserError, match=r"hold model.layers.0.*; quark, humming and sdnq can"):
        export(source, "compressed-tensors", tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'humming'"):
        export(source, "huming", tmp_path / "out")
    with pytest.raises(UserError, match="name another folder"):
        export(source, "humming", source)
    config = config_of(source)
    config["quantization_config"]["layers"]["model.layers.0.mlp.down_proj"]["rank"] = 8
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="low-rank branch of rank 8"):
        export(source, "humming", tmp_path / "out")
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no minifloat checkpoint"):
        export(source, "humming", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_can_be_left_out(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(QuantSpec(formats.E2M3, (1, 32), formats.FP16), FP8_TOKEN))
    with pytest.raises(UserError, match="humming and sdnq can, with --weights-only"):
        export(source, "compressed-tensors", tmp_path / "out")
    with pytest.raises(UserError, match="add --weights-only"):
        export(source, "humming", tmp_path / "out")
    assert export(source, "humming", tmp_path / "out", weights_only=True)["layers"] == 14


def test_shards_are_cut_and_read_by_the_package(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(7, i + 1).to(torch.bfloat16) for i in range(6)}
    tensors |= {"bytes": torch.arange(5, dtype=torch.uint8), "none": torch.empty(0, 3)}
    tensors["scale"] = torch.ones(3, dtype=torch.float8_e8m0fnu)
    write(tmp_path, tensors.items(), limit=100)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    found = {name: t for file in files for name, t in load_file(file).items()}
    places = entries(tmp_path)
    for name, tensor in tensors.items():
        for other in (found[name], places[name].read()):
            assert other.dtype == tensor.dtype
            assert other.shape == tensor.shape
            one, two = (t.reshape(-1).view(torch.uint8) for t in (other, tensor))
            assert torch.equal(one, two)


@pytest.mark.parametrize("keep", [0, 7, 40, -1])
def test_damaged_shards_are_named(tmp_path: Path, keep: int) -> None:
    write(tmp_path, [("a", torch.ones(4, 4))])
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or cut off"):
        entries(tmp_path)
