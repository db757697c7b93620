"""Milliseconds of a linear layer with packed weights on the CPU, against peers in the same process.

    python -m benchmarks.kernels_cpu [--json FILE] [--shapes 4096x4096 576x1536] [--threads 1]

Ours are named weight x activations: FP4 is E2M1 in groups of 128 (or 32) with fp16 scales, FP8 and INT8
weights have a scale a row, activations one a token. Peers multiply the same numbers of tokens by weights
of the same shape: torch in fp32, bf16 and dynamic INT8 (`quantize_dynamic`); `kernels_cpu_peers` has the
other libraries. Calls are interleaved, each after one that does not count, and each one's best is taken.
With one thread it is the process's CPU time, which other work on the machine disturbs least; with more,
the wall clock. Weights rotate among copies that together exceed the last-level cache, as the layers of a
model do. The second table is what a call costs beside the product, by a layer of next to nothing.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import finish
from minifloat import formats
from minifloat.kernels import native, reference
from minifloat.spec import (
    FP4_G128,
    FP8_CHANNEL,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP6,
    LayerSpec,
)
from minifloat.timing import Call, best, copies, packed, packed_copies, peers, plain, rotating

TOKENS = (1, 4, 16, 64, 256, 1024)
SHAPES = ["4096x4096", "576x1536"]
INT4_ZERO = replace(FP4_G128, format=formats.UINT4, zero_point=True)
OURS = {
    "fp4 x int8": LayerSpec(FP4_G128, INT8_TOKEN),
    "fp4 g32 x int8": LayerSpec(replace(FP4_G128, tile=(1, 32)), INT8_TOKEN),
    "fp4 x fp8": LayerSpec(FP4_G128, FP8_TOKEN),
    "fp4 x fp32": LayerSpec(FP4_G128),
    "int8 x int8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
    "fp8 x fp8": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    "fp6 x fp8": LayerSpec(MXFP6, FP8_TOKEN),
    "int4 zero x int8": LayerSpec(INT4_ZERO, INT8_TOKEN),
}


def calls(w: Tensor) -> dict[str, Call]:
    """All rows for one weight, each over copies that are taken in turn."""
    size = w.numel()
    rows = {name: rotating(packed_copies(w, spec, copies(size))) for name, spec in OURS.items()}
    first = packed(w, OURS["fp4 x int8"])
    rows["reference"] = lambda x: reference.linear(x, first.packed())
    return rows | peers(w)


def measure(shape: str, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row for every number of tokens."""
    out_features, in_features = map(int, shape.split("x"))
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows = calls(torch.randn(out_features, in_features, generator=generator))
    found = []
    for tokens in TOKENS:
        x = torch.randn(tokens, in_features, generator=generator)
        row: dict[str, Any] = {"shape": shape, "threads": threads, "tokens": tokens}
        row["ms"] = best(rows, x, seconds)
        row["load"] = os.getloadavg()[0]
        found.append(row)
        print(row, flush=True)
    return found


def overhead() -> dict[str, float]:
    """Microseconds of a call of a layer of 32 x 128 for one token."""
    torch.set_num_threads(1)
    w, x = torch.randn(32, 128), torch.randn(1, 128)
    rows: dict[str, Call] = {name: packed(w, spec) for name, spec in OURS.items()}
    rows["torch fp32"] = plain(w)

    def often(call: Call) -> Call:
        def repeat(x: Tensor) -> Tensor:
            for _ in range(100):
                call(x)
            return x

        return repeat

    return {
        name: 10 * ms for name, ms in best({n: often(c) for n, c in rows.items()}, x, 3).items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds in Markdown, and how much faster FP4 x INT8 is than each peer's best."""
    names = list(rows[0]["ms"])
    others = [name for name in names if name.startswith("torch")]
    head = ["weight", "threads", "tokens", *names, "best peer / fp4 x int8", "GOP/s", "load"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        ms = row["ms"]
        product = row["tokens"] * elements(row["shape"])
        cells = [row["shape"].replace("x", " x "), str(row["threads"]), str(row["tokens"])]
        cells += [f"{ms[name]:.3f}" for name in names]
        cells += [f"{min(ms[name] for name in others) / ms['fp4 x int8']:.2f}"]
        cells += [f"{2e-6 * product / ms['fp4 x int8']:.0f}", f"{row['load']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def elements(shape: str) -> int:
    rows, columns = map(int, shape.split("x"))
    return rows * columns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=4, help="for each number of tokens")
    args = parser.parse_args()
    if native.library() is None:
        raise SystemExit("minifloat was installed without a C compiler; there is nothing to time")
    rows = []
    with torch.inference_mode():
        for shape in args.shapes:
            for threads in args.threads:
                rows += measure(shape, threads, args.seconds)
        small = overhead()
    lines = ["| layer of 32 x 128, one token | microseconds a call |", "|---|---|"]
    lines += [f"| {name} | {microseconds:.1f} |" for name, microseconds in small.items()]
    print(native.LEVELS[native.level()])
    finish(rows, table(rows) + "\n\n" + "\n".join(lines), ["torch"], args.json)


if __name__ == "__main__":
    main()
