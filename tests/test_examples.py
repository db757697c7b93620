"""The examples run as they are printed, and what they write loads."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import minifloat  # noqa: F401  registers with transformers

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_llama(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = EXAMPLES.parent / "zoo" / "llama-tiny"
    monkeypatch.setattr(sys, "argv", ["llama.py", str(model), str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / "llama.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "e2m1 1x64 fp16" in printed
    assert "o_proj.weight" in printed
    assert "e4m3 1xall fp32" in printed
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.isfinite(loaded(torch.arange(3, 19)[None]).logits).all()


def test_unet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["unet.py"])
    runpy.run_path(str(EXAMPLES / "unet.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.startswith("55 layers at 4.4")
    assert float(printed.split()[-2]) > 10
