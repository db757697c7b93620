"""kill -9 at random moments: every run goes on, and ends with the bytes of one that nobody disturbed.

    python -m benchmarks.kills ROWS [--kills 50] [--arms gptq learned]

The model is a Llama of four blocks with random weights, so that hundreds of runs take minutes. A process
that has imported everything forks one child a run, which calls the command line; the child is killed at
a moment drawn evenly from the time that an undisturbed run takes, and a second child goes on with
--resume (or anew, if the first had not begun to keep blocks). Every file of both folders but the report
and its card, which hold times, must be equal, and nothing else be left. ROWS holds one JSON object a
kill, so that the study itself may be killed. The first row of an arm is the undisturbed run, with the
seconds of it that went into keeping blocks.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import add_row, read_rows
from minifloat import cli
from minifloat.calibrate.journal import Journal
from minifloat.jobs.run import run  # noqa: F401
from minifloat.jobs.unfinished import unfinished
from minifloat.models.zoo import locate

TEXT = "The people of the United States are many, and what they have done together is much. "
QUICK = ["--samples", "4", "--length", "32", "--evaluate", "0"]
# Short ones: what is slow in a run (searches) is the same between two blocks.
_LEARNED = ("steps=20", "group_size=64", "activation_bits=16", "search=false", "family=int")
ARMS = {
    "gptq": ["--method", "zeroquant-fp", "--set", "search=false"],
    "learned": ["--method", "fp-diffusion", *(w for s in _LEARNED for w in ("--set", s))],
}
TIMED = ("report.json", "report.html", "README.md")


def prepare(folder: Path) -> Path:
    """Write the model with the tokenizer of the zoo, and a text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(locate("llama-tiny")) / name, folder / name)
    (folder / "text.txt").write_text(TEXT * 8)
    return folder


def start(arm: str, model: Path, out: Path, *more: str) -> int:
    """Fork a child that quantizes into `out`; its number. Its exit code is the command's."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        where = [str(model), "--data", str(model / "text.txt"), "--out", str(out)]
        sys.argv = ["minifloat", "quantize", *where, *QUICK, *ARMS[arm], *more]
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)  # without the parent's own ends


def end(child: int) -> int:
    """Wait for a child; its exit code, minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def go_on(arm: str, model: Path, out: Path) -> bool:
    """Finish a killed run as a user does; whether --resume was of use."""
    if end(start(arm, model, out, "--resume")) == 0:
        return True
    assert end(start(arm, model, out)) == 0, f"{arm} neither goes on nor starts anew"
    return False


def different(a: Path, b: Path) -> list[str]:
    """The files of two folders that are not the same bytes."""
    names = {p.relative_to(r) for r in (a, b) for p in r.rglob("*") if p.is_file()}
    names -= {Path(name) for name in TIMED}
    return sorted(str(name) for name in names if _bytes(a / name) != _bytes(b / name))


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def undisturbed(arm: str, model: Path, out: Path) -> dict[str, Any]:
    """A whole run, with the seconds that it took and those of keeping its blocks."""
    clock = out.with_name("seconds")
    keep = Journal.keep

    def timed(*args: Any) -> None:
        started = time.perf_counter()
        keep(*args)
        with clock.open("a") as file:
            file.write(f"{time.perf_counter() - started}\n")

    started = time.perf_counter()
    Journal.keep = timed  # type: ignore[method-assign]
    try:
        assert end(start(arm, model, out)) == 0
    finally:
        Journal.keep = keep  # type: ignore[method-assign]
    seconds = time.perf_counter() - started
    kept = sum(map(float, clock.read_text().split()))
    clock.unlink()
    return {"arm": arm, "kill": -1, "seconds": seconds, "keeping": kept}


def kill(arm: str, model: Path, whole: Path, moment: float) -> dict[str, Any]:
    """One run that is killed after `moment` seconds and goes on."""
    with tempfile.TemporaryDirectory(dir=whole.parent) as folder:
        out = Path(folder) / "out"
        child = start(arm, model, out)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        ended = end(child)
        blocks = len(list(unfinished(out).glob("*.safetensors")))
        row: dict[str, Any] = {"moment": round(moment, 3), "killed": ended == -signal.SIGKILL}
        row |= {"blocks": blocks, "written": (out / "config.json").is_file()}
        if row["killed"]:
            row["resumed"] = go_on(arm, model, out)
        row["different"] = different(whole, out)
        row["left over"] = sorted(p.name for p in Path(folder).iterdir() if p != out)
        return row


def study(arm: str, kills: int, rows: Path) -> None:
    """Do what an arm lacks; a run that had ended before its kill is no kill and is drawn again."""
    generator = random.Random(arm)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        model = prepare(Path(folder) / "model")
        first = undisturbed(arm, model, whole)
        done = [row for row in read_rows(rows) if row["arm"] == arm]
        if not done:
            add_row(rows, first)
        number = sum(row.get("killed", False) for row in done)
        while number < kills:
            row = kill(arm, model, whole, generator.uniform(0, first["seconds"]))
            add_row(rows, {"arm": arm, "kill": number, **row})
            number += row["killed"]


def summary(rows: Path, arm: str) -> str:
    found = [row for row in read_rows(rows) if row["arm"] == arm]
    first, killed = found[0], [row for row in found if row.get("killed")]
    equal = sum(not row["different"] and not row["left over"] for row in killed)
    blocks = statistics.mean(row["blocks"] for row in killed)
    return (
        f"| {arm} | {len(killed)} | {sum(row['resumed'] for row in killed)} | {blocks:.1f} | {equal} | "
        f"{first['seconds']:.1f} s | {first['keeping']:.3f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    args = parser.parse_args()
    for arm in args.arms:
        study(arm, args.kills, args.rows)
    print("| rounding | kills | went on | blocks done | equal | undisturbed | keeping blocks |")
    print("|---|---|---|---|---|---|---|")
    for arm in args.arms:
        print(summary(args.rows, arm))


if __name__ == "__main__":
    main()
