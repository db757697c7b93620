"""One process against several that share a calibration on one machine: wall time and plan.

    python -m benchmarks.team [--model zoo:llama-tiny] [--processes 2] [--samples 32] [--length 512]

Each process has one thread. The time is that of the walk, without imports and loading, and means
something only where as many cores are free.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEAM = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ROW = "| {} | {:.1f} s | {:.4f} |"


def report(processes: int, more: list[str]) -> dict[str, Any]:
    """The report of a run by so many processes."""
    start = [*TEAM, str(processes)] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, *start, "-m", "minifloat", "quantize", *more, "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        found: dict[str, Any] = json.loads((out / "report.json").read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:llama-tiny")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    args = parser.parse_args()
    more = [args.model, "--samples", str(args.samples), "--length", str(args.length)]
    one, several = (report(count, more) for count in (1, args.processes))
    print("| processes | walk | perplexity |\n|---|---|---|")
    for found in (one, several):
        perplexity = found["metrics"][0]["quantized"]
        print(ROW.format(found["processes"], found["seconds"]["quantize"], perplexity))
    print("the same plan" if one["plan"] == several["plan"] else "OTHER PLANS")


if __name__ == "__main__":
    main()
