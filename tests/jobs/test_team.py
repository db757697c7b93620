"""Two processes that share a calibration come to what one process comes to."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minifloat import method
from minifloat.calibrate.team import Team
from minifloat.errors import UserError
from minifloat.methods import build
from minifloat.models.load import load_model, read_tokens, sample_windows

MODEL = Path(__file__).parents[2] / "zoo" / "llama-tiny"
QUICK = ("--samples", "4", "--length", "128", "--evaluate", "1024")
# A free port on loopback, two processes, one thread each.
TEAM = (
    sys.executable,
    *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minifloat"),
)


def quantize(start: tuple[str, ...], out: Path, *more: str) -> dict[str, Any]:
    command = [*start, "quantize", str(MODEL), "--out", str(out), *QUICK, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint:") == 1
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def one_process() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same windows in the same two batches, in this process alone."""
    model, tokenizer = load_model(str(MODEL))
    windows = sample_windows(read_tokens(tokenizer, None), 4, 128, 0)
    report = method.quantize(model, build("zeroquant-fp", {}), [windows[0::2], windows[1::2]])
    return model.state_dict(), report


def test_two_processes_come_to_what_one_comes_to(tmp_path: Path) -> None:
    two = quantize(TEAM, tmp_path / "two")
    stored = load_file(tmp_path / "two" / "model.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun starts its processes
    try:
        expected, one = one_process()
    finally:
        torch.set_num_threads(threads)
    assert (one["processes"], two["processes"]) == (1, 2)
    # A product that is added to a sum rounds otherwise than two sums: a tie may break the other way,
    # and GPTQ carries it on to later columns and blocks. The first block is nearly untouched.
    first = [n for n in stored if ".layers.0." in n and n.endswith("proj.weight")]
    different = sum(int((stored[name] != expected[name]).sum()) for name in first)
    assert len(first) == 7
    assert different <= 1e-3 * sum(stored[name].numel() for name in first)
    rows = zip(one["ledger"], two["ledger"], strict=True)
    assert all(x.get("samples") == y.get("samples") for x, y in rows)
    assert dict(two["block_sqnr"]) == pytest.approx(dict(one["block_sqnr"]), abs=0.3)


def test_learned_rounding_agrees_on_its_gradients(tmp_path: Path) -> None:
    settings = ("--method", "fp-diffusion", "--set", "steps=8", "--set", "activation_bits=8")
    two = quantize(TEAM, tmp_path / "two", *settings, "--set", "group_size=64")
    perplexity = two["metrics"][0]
    assert perplexity["quantized"] < 1.2 * perplexity["full_precision"]


def test_too_few_samples_are_refused() -> None:
    assert Team(1, 2).share([0, 1, 2]) == [1]
    with pytest.raises(UserError, match="1 calibration samples cannot be shared by 2"):
        Team(0, 2).share([0])
