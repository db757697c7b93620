"""A run that is killed goes on to the same bytes, and never with other settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from minifloat import cli
from minifloat.calibrate.journal import Journal, fingerprint
from minifloat.errors import UserError
from minifloat.jobs.unfinished import unfinished

MODEL = Path(__file__).parents[2] / "zoo" / "llama-tiny"
QUICK = ["--samples", "4", "--length", "64", "--evaluate", "512"]


def command(out: Path, *more: str) -> list[str]:
    run = ["quantize", str(MODEL), "--out", str(out), *QUICK, *more]
    return [sys.executable, "-c", "from minifloat.cli import main; main()", *run]


def finish(out: Path, *more: str) -> None:
    subprocess.run(command(out, *more), check=True, capture_output=True, timeout=300)


def kill_after_blocks(out: Path, blocks: int) -> None:
    """Start a run, and kill it once so many blocks are finished."""
    run = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, limit = unfinished(out), time.monotonic() + 300
    while len(list(folder.glob("*.safetensors"))) < blocks:
        assert run.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()


def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    kill_after_blocks(killed, 2)
    assert not killed.exists()

    def said(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["minifloat", *command(killed, *more)[3:]])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
        return capsys.readouterr().err

    assert "go on with --resume" in said()
    assert "seed was 0, is 1" in said("--resume", "--seed", "1")
    finish(killed, "--resume")
    assert not unfinished(killed).exists()
    a, b = (load_file(out / "model.safetensors") for out in (whole, killed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    reports = [json.loads((out / "report.json").read_text()) for out in (whole, killed)]
    assert reports[0]["ledger"] == reports[1]["ledger"]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert "no unfinished run" in said("--resume")


def test_a_damaged_block_is_worked_out_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 0}, resume=False)
    model = nn.Sequential(nn.Linear(4, 4))
    assert journal.restore(["0"], model) is None
    journal.keep(["0"], model, [{}])
    assert journal.restore(["0"], model) == [{}]
    file = tmp_path / "0.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert journal.restore(["0"], model) is None
    file.write_bytes(data[:-8])
    assert journal.restore(["0"], model) is None


def test_other_settings_start_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seed": 0}, resume=False)
    journal.keep(["0"], nn.Sequential(nn.Linear(4, 4)), [{}])
    with pytest.raises(UserError, match="stopped after 1 blocks"):
        Journal(tmp_path, {"seed": 0}, resume=False)
    with pytest.raises(UserError, match="seed was 0, is 1"):
        Journal(tmp_path, {"seed": 1}, resume=True)
    assert (tmp_path / "0.safetensors").exists()
    Journal(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / "0.safetensors").exists()


def test_models_are_told_apart() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    assert fingerprint(one) != fingerprint(other)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(other)
