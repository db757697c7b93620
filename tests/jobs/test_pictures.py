"""Vision-language models from the command line: pictures with words, text alone, mistakes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from minifloat.errors import UserError
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.llama import LlamaAdapter
from minifloat.models.pairs import read_pairs
from tests.command_line import minifloat
from tests.jobs.tiny_folders import language, pairs, vision_language
from tests.models import tiny_vlm

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn
NEAREST = ("--set", "solver=nearest", "--set", "rank=0", "--set", "search=false")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision_language(tmp_path_factory.mktemp("pictures") / "model")


def test_pictures_calibrate_all_towers_and_others_judge(model: Path, tmp_path: Path) -> None:
    data, out = pairs(tmp_path / "pairs"), tmp_path / "out"
    assert minifloat("quantize", model, "--data", data, "--out", out, *NEAREST) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["samples"] == 6
    assert report["settings"]["evaluated pairs"] == 2
    rows = {row["name"]: row["status"] for row in report["ledger"]}
    for layer in (
        "vision_tower.encoder.layers.0.mlp.fc1",
        "multi_modal_projector.linear_1",
        "language_model.layers.1.mlp.up_proj",
    ):
        assert rows[f"model.{layer}.weight"] == "quantized"
    loaded = AutoModelForImageTextToText.from_pretrained(out)
    packed = sum(isinstance(module, QLinear) for module in loaded.modules())
    assert packed == sum(status == "quantized" for status in rows.values())
    assert AutoProcessor.from_pretrained(out).image_token == "<image>"
    card = (out / "README.md").read_text()
    assert "processor = AutoProcessor.from_pretrained(DIR)" in card
    assert "AutoModelForImageTextToText.from_pretrained(DIR)" in card


def test_text_alone_quantizes_the_language_and_says_so(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--samples", 2, "--length", 16, "--evaluate", 32)
    assert minifloat("quantize", model, "--out", out, *quick, *NEAREST) == 0
    report = json.loads((out / "report.json").read_text())
    for row in report["ledger"]:
        apart = row["name"].startswith(("model.vision_tower", "model.multi_modal_projector"))
        assert ("text alone" in row["reason"]) == apart, row["name"]
        assert not apart or row["status"] == "kept"
    assert {row["name"] for row in report["metrics"]} >= {"perplexity", "KL divergence"}
    assert (out / "processor_config.json").is_file()
    assert minifloat("evaluate", out, "--against", model, "--tokens", 64, "--length", 16) == 0


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_text_alone_walks_the_language_tower_of_every_family(family: str) -> None:
    model = tiny_vlm.build(family, torch.float32)
    method = build("zeroquant-fp", {"solver": "nearest", "rank": "0", "search": "false"})
    report = quantize(model, method, [torch.arange(3, 19)[None]], adapter=LlamaAdapter())
    done = [row["name"] for row in report["ledger"] if row["status"] == "quantized"]
    assert done
    assert all("language_model" in name or "text_model" in name for name in done)


def test_a_run_of_pictures_that_stops_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minifloat.jobs import text

    data, out = pairs(tmp_path / "pairs"), tmp_path / "out"
    run = ("quantize", model, "--data", data, "--out", out, "--evaluate", 0, *NEAREST)

    def stop(*_: object) -> int:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(text, "save", stop)
        assert minifloat(*run) == 2
    (data / "0.png").write_bytes((data / "1.png").read_bytes())
    assert minifloat(*run, "--resume") == 2
    assert "pictures and words was" in capsys.readouterr().err
    pairs(tmp_path / "again")
    (data / "0.png").write_bytes((tmp_path / "again" / "0.png").read_bytes())
    assert minifloat(*run, "--resume") == 0


def test_mistakes_are_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pairs(tmp_path / "pairs", 4)

    def said(*more: object, source: Path = model) -> str:
        assert minifloat("quantize", source, "--out", tmp_path / "out", *NEAREST, *more) == 2
        return capsys.readouterr().err

    assert "metadata.jsonl" in said("--data", tmp_path)
    assert "4 pairs are too few for 4 that calibrate and 1" in said("--data", data, "--samples", 4)
    plain = language(tmp_path / "plain")
    assert "no image processor" in said("--data", data, source=plain)
    index = data / "metadata.jsonl"
    rows = index.read_text()
    index.write_text(
        rows.replace("The colour", f"{AutoProcessor.from_pretrained(model).image_token} it")
    )
    assert "leave it out" in said("--data", data, "--samples", 3)
    index.write_text(rows)
    (data / "0.png").write_bytes(b"no picture")
    assert "cannot read the picture" in said("--data", data)
    (data / "metadata.jsonl").write_text('{"file_name": "0.png"}\n')
    assert "line 1" in said("--data", data)
    (data / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "x"}\n')
    with pytest.raises(UserError, match=r"names 'x\.png', but there is no such file"):
        read_pairs(data)
