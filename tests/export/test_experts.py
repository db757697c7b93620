"""Mixtures of experts under the hub's names, which transformers' own readers turn into its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.native import save
from minifloat.export.native_folder import open_native
from minifloat.export.read import read_folder
from minifloat.export.verify import parse_reader, verify
from minifloat.export.write import export
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.experts import open_experts
from minifloat.plan import Plan
from minifloat.spec import FP8_CHANNEL, FP8_TENSOR, NVFP4, LayerSpec, QuantSpec
from tests.export.conftest import config_of
from tests.export.test_write import digest
from tests.models import tiny_lm

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn
INT4 = LayerSpec(QuantSpec(formats.INT4, (1, 8), formats.FP16))
FP8 = LayerSpec(FP8_CHANNEL)
DOWN_KEPT, UP_KEPT = (("*.experts.*.down", None),), (("*.experts.*.up", None),)
NAMES = {"Mixtral": ("w1", "w3", "w2"), "Qwen3Moe": ("gate_proj", "up_proj", "down_proj")}


def checkpoint(
    folder: Path, family: str, spec: LayerSpec, *rules: tuple[str, LayerSpec | None]
) -> Any:
    """A packed model with opened experts, in its folder and as transformers loads it from there."""
    model: Any = tiny_lm.build(family).float()
    open_experts(model)
    plan = Plan((*rules, ("*", spec)))
    method = build("zeroquant-fp", {"rank": "0", "solver": "nearest", "search": "false"})
    report = quantize(model, method, [torch.arange(3, 35)[None]], plan=plan)
    folder.mkdir()
    save(model, Plan.from_json(report["plan"]), folder)
    return load(folder)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("spec", [INT4, FP8], ids=["W4A16", "FP8"])
def test_transformers_reads_experts_one_by_one_to_our_logits(
    family: str, spec: LayerSpec, tmp_path: Path
) -> None:
    ours = checkpoint(tmp_path / "native", family, spec)
    export(tmp_path / "native", "compressed-tensors", tmp_path / "out")
    theirs, tokens = load(tmp_path / "out"), torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits, rtol=0, atol=1e-5)
    assert compare(tmp_path / "out", open_native(tmp_path / "native")) == []
    found = load_file(tmp_path / "out" / "model.safetensors")
    suffix = "weight_packed" if spec == INT4 else "weight"
    block, width = ("block_sparse_moe", 40) if family == "Mixtral" else ("mlp", 24)
    for name, rows in zip(NAMES[family], (width, width, 32), strict=True):
        assert len(found[f"model.layers.0.{block}.experts.3.{name}.{suffix}"]) == rows
    assert not any(".experts.layers." in name for name in found)


def test_fused_experts_in_full_precision_get_the_hubs_names(tmp_path: Path) -> None:
    ours = checkpoint(tmp_path / "native", "Qwen3Moe", INT4, ("*.experts.*", None))
    export(tmp_path / "native", "compressed-tensors", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.layers.1.mlp.experts.2.up_proj.weight"].shape == (24, 32)
    experts = ours.model.layers[1].mlp.experts.layers[2]
    assert torch.equal(
        found["model.layers.1.mlp.experts.2.gate_proj.weight"], experts.up.weight[:24]
    )
    assert torch.equal(found["model.layers.1.mlp.experts.2.up_proj.weight"], experts.up.weight[24:])


def test_outer_scales_are_shared_by_gate_and_up(tmp_path: Path) -> None:
    checkpoint(tmp_path / "native", "Qwen3Moe", LayerSpec(NVFP4), ("*.experts.*.down", None))
    with pytest.raises(UserError, match=r"experts of .* have different specs"):
        export(tmp_path / "native", "modelopt", tmp_path / "out")
    export(tmp_path / "native", "modelopt", tmp_path / "out", separate=True)
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.mlp.experts.1"
    one, two = (found[f"{name}.{part}_proj.weight_scale_2"] for part in ("gate", "up"))
    assert torch.equal(one, two)
    verdicts = {f.verdict for f in verify(tmp_path / "out", parse_reader("vllm"))}
    assert "differs" not in verdicts


def test_what_has_no_place(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a", "GraniteMoe", INT4)
    with pytest.raises(UserError, match="names of granitemoe's experts are not known"):
        export(tmp_path / "a", "compressed-tensors", tmp_path / "out")
    checkpoint(tmp_path / "b", "Qwen3Moe", LayerSpec(FP8_TENSOR))
    with pytest.raises(UserError, match="its readers take experts in one parameter"):
        export(tmp_path / "b", "sdnq", tmp_path / "out")
    export(tmp_path / "b", "compressed-tensors", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.experts.1.up_proj.weight_scale"] *= 2
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"gate and up of .*experts.layers.1.up have different"):
        read_folder(tmp_path / "out", tmp_path / "back")
    config = config_of(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"model_type": "granitemoe"}))
    with pytest.raises(UserError, match="names of granitemoe's experts are not known"):
        read_folder(tmp_path / "out", tmp_path / "back")


BACK: dict[str, tuple[str, str, LayerSpec, tuple[tuple[str, LayerSpec | None], ...]]] = {
    "Mixtral W4A16": ("Mixtral", "compressed-tensors", INT4, ()),
    "Qwen3 one scale a tensor": ("Qwen3Moe", "compressed-tensors", LayerSpec(FP8_TENSOR), ()),
    "Qwen3 NVFP4, down kept": ("Qwen3Moe", "modelopt", LayerSpec(NVFP4, NVFP4), DOWN_KEPT),
    "Qwen3 W4A16, up kept": ("Qwen3Moe", "compressed-tensors", INT4, UP_KEPT),
    "Mixtral, all experts kept": ("Mixtral", "compressed-tensors", INT4, (("*.experts.*", None),)),
}


@pytest.mark.parametrize("case", BACK)
def test_experts_come_back(case: str, tmp_path: Path) -> None:
    """To the same logits, and out again byte for byte."""
    family, contract, spec, rules = BACK[case]
    ours = checkpoint(tmp_path / "native", family, spec, *rules)
    export(tmp_path / "native", contract, tmp_path / "one", separate=True)
    read_folder(tmp_path / "one", tmp_path / "back")
    export(tmp_path / "back", contract, tmp_path / "two", separate=True)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    again, tokens = load(tmp_path / "back"), torch.arange(3, 27).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, ours(tokens).logits, rtol=0, atol=1e-5)
