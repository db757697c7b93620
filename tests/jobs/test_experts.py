"""Mixtures of experts from the command line: opened where the plan quantizes them, counted, reloaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minifloat.export.native_folder import open_native
from minifloat.jobs import text as jobs_text
from minifloat.layers import QLinear
from minifloat.models.experts import ExpertLayers, fused_experts
from minifloat.models.load import load_model
from tests.command_line import minifloat
from tests.jobs.tiny_folders import language, text

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn
NEAREST = ("--set", "solver=nearest", "--set", "rank=0", "--set", "search=false")
MANY = ("--samples", 8, "--length", 32, "--evaluate", 64)
FEW = ("--samples", 1, "--length", 1, "--evaluate", 0)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language(tmp_path_factory.mktemp("mixture") / "Mixtral", "Mixtral")


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "GptOss", "Jamba"])
def test_experts_are_opened_named_and_reloaded(family: str, tmp_path: Path) -> None:
    source, out = language(tmp_path / family, family), tmp_path / "out"
    data = ("--data", text(tmp_path / "text.txt"))
    assert minifloat("quantize", source, "--out", out, *data, *MANY, *NEAREST) == 0
    report = json.loads((out / "report.json").read_text())
    experts = [row for row in report["ledger"] if ".experts.layers." in row["name"]]
    packed = [row for row in experts if row["status"] == "quantized"]
    origins = {row["fused"].rpartition("[")[0].rpartition(".")[2] for row in packed}
    assert origins == {"gate_up_proj", "down_proj"}
    assert (
        len({row["fused"] for row in packed})
        == len(packed)
        == len(experts) / (2 if any("bias" in row["name"] for row in experts) else 1)
    )
    assert all(("its weights alone" in row["reason"]) == (row["samples"] < 64) for row in packed)
    model, _ = load_model(str(out))
    assert not fused_experts(model)
    assert sum(isinstance(m, QLinear) for m in model.modules()) == len(open_native(out).specs)
    assert torch.isfinite(model(torch.arange(3, 19)[None]).logits).all()


def test_experts_that_no_token_reached_fail_the_run(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token visits two of four experts in both blocks; the other four have two layers each."""
    data = ("--data", text(tmp_path / "text.txt"))
    run = ("quantize", mixture, "--out", tmp_path / "out", *data, *FEW, *NEAREST)
    assert minifloat(*run) == 2
    said = capsys.readouterr().err
    assert "8 tensors: experts that no calibration token reached (model.layers.0.mlp" in said
    assert minifloat(*run, "--resume", "--unseen") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    unseen = [row for row in report["ledger"] if row["reason"].startswith("0 tokens reached")]
    assert len(unseen) == 8


@pytest.mark.parametrize(
    ("family", "kept"), [("Mixtral", ""), ("Qwen3Moe", "*.layers.1.*"), ("GptOss", "")]
)
def test_block_by_block_gives_the_same_bytes(
    family: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's names, of which a kept block's experts stay fused, and from fused parameters."""
    source = language(tmp_path / family, family)
    plan = {"rules": [[kept, None]] * bool(kept) + [["*", {"weight": "int8-channel"}]]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    data = ("--data", text(tmp_path / "text.txt"), "--plan", tmp_path / "plan.json")
    found = []
    for name in ("whole", "lazy"):
        out = tmp_path / name
        assert minifloat("quantize", source, "--out", out, *data, *MANY, *NEAREST) == 0
        found.append(load_file(out / "model.safetensors"))
        monkeypatch.setattr(jobs_text, "_is_too_large", lambda job: True)
    whole, lazy = found
    assert any(".experts.layers." in name for name in whole)
    assert any(name.endswith("experts.down_proj") for name in whole) == bool(kept)
    assert whole.keys() == lazy.keys()
    assert all(torch.equal(whole[name], lazy[name]) for name in whole)


def test_a_plan_that_keeps_experts_leaves_them_fused(mixture: Path, tmp_path: Path) -> None:
    plan = {"rules": [["*.experts.*", None], ["*", {"weight": "int8-channel"}]]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = tmp_path / "out"
    data = ("--data", text(tmp_path / "text.txt"), "--plan", tmp_path / "plan.json")
    run = ("quantize", mixture, "--out", out, *data, *FEW, *NEAREST)
    assert minifloat(*run) == 0
    model, _ = load_model(str(out))
    assert fused_experts(model)
    assert not any(isinstance(module, ExpertLayers) for module in model.modules())
    rows = json.loads((out / "report.json").read_text())["ledger"]
    kept = {row["reason"] for row in rows if ".experts." in row["name"]}
    assert kept == {"experts fused in one 3-D parameter stay in full precision"}
