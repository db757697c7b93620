"""Milliseconds of a linear layer with packed 4-bit weights on the CPU, against torch and the memory.

    python -m benchmarks.kernels_cpu [--json FILE] [--shapes 4096x4096 576x1536]

E2M1 in groups of 128, fp16 scales, activations as they come (fp32), by tokens and threads. Peers are
torch's fp32 and bf16 products on the decoded weight and our own reference row, all in one process,
interleaved, best of the runs (other work on the machine only ever adds time). The limit is the bytes
that must be read (packed weight, scales) at the read bandwidth measured in the same run. Weights rotate
among copies that together exceed the last-level cache, as the layers of a model do.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import finish
from minifloat.kernels import cpu, native, reference
from minifloat.kernels.packed import PackedLinear
from minifloat.packing import pack
from minifloat.qtensor import encode
from minifloat.spec import FP4_G128, LayerSpec

TOKENS = (1, 4, 16, 64, 256)
SHAPES = ["4096x4096", "576x1536"]
# Bytes of weights to rotate among: more than the last-level cache.
ROTATE = 256 << 20


def layers(out_features: int, in_features: int) -> list[PackedLinear]:
    """Copies of one packed layer; the first also holds the decoded weight."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(out_features, in_features, generator=generator)
    q = encode(w, FP4_G128)
    spec = LayerSpec(weight=FP4_G128)
    copies = min(64, max(1, ROTATE // (w.numel() // 2)))
    codes = pack(q.codes, 4)
    return [
        PackedLinear(codes.clone(), q.scale, spec, (out_features, in_features), torch.float32)
        for _ in range(copies)
    ]


def rotating(call: Callable[[int], Any], copies: int) -> Callable[[], Any]:
    """A call without arguments that takes another copy each time."""
    turn = [0]

    def rotate() -> Any:
        turn[0] = (turn[0] + 1) % copies
        return call(turn[0])

    return rotate


def best(calls: dict[str, Callable[[], Any]], seconds: float = 1.5) -> dict[str, float]:
    """Least milliseconds of each call, interleaved for at least three rounds."""
    least = dict.fromkeys(calls, float("inf"))
    started, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - started < seconds:
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            least[name] = min(least[name], 1e3 * (time.perf_counter() - before))
        rounds += 1
    return least


def read_bandwidth() -> float:
    """Bytes a second of reading a tensor larger than the cache."""
    x = torch.zeros(64 << 20)
    milliseconds = best({"sum": x.sum})["sum"]
    return x.numel() * 4 / milliseconds * 1e3


def measure(shape: str, threads: int) -> list[dict[str, Any]]:
    """One row for every number of tokens."""
    out_features, in_features = map(int, shape.split("x"))
    torch.set_num_threads(threads)
    packed = layers(out_features, in_features)
    count = max(1, min(len(packed), ROTATE // (4 * out_features * in_features)))
    wide = [packed[0].weight() for _ in range(count)]
    half = [w.bfloat16() for w in wide]
    needed = packed[0].codes.numel() + packed[0].scale.stored.numel() * 2
    limit = needed / read_bandwidth() * 1e3
    rows = []
    for tokens in TOKENS:
        x = torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(1))
        short = x.bfloat16()
        calls = {
            "cpu-w4": rotating(lambda i, x=x: cpu.linear(x, packed[i]), len(packed)),
            "reference": rotating(lambda i, x=x: reference.linear(x, packed[i]), len(packed)),
            "torch fp32": rotating(lambda i, x=x: torch.nn.functional.linear(x, wide[i]), count),
            "torch bf16": rotating(
                lambda i, x=short: torch.nn.functional.linear(x, half[i]), count
            ),
        }
        row = {"shape": shape, "threads": threads, "tokens": tokens, "limit": limit} | best(calls)
        rows.append(row)
        print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in Markdown with ratios to fp32 and to the memory limit."""
    names = ("cpu-w4", "reference", "torch fp32", "torch bf16", "limit")
    lines = [
        "| weight | threads | tokens | "
        + " | ".join(names)
        + " | fp32 / cpu-w4 | limit / cpu-w4 |",
        "|---" * (5 + len(names)) + "|",
    ]
    for row in rows:
        cells = [row["shape"].replace("x", " x "), str(row["threads"]), str(row["tokens"])]
        cells += [f"{row[name]:.3f}" for name in names]
        cells += [f"{row[name] / row['cpu-w4']:.2f}" for name in ("torch fp32", "limit")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    args = parser.parse_args()
    if native.library() is None:
        raise SystemExit("minifloat was installed without a C compiler; there is nothing to time")
    most = torch.get_num_threads()
    rows = []
    with torch.inference_mode():
        for shape in args.shapes:
            for threads in sorted({1, most}):
                rows += measure(shape, threads)
    print(("plain C", "AVX2", "AVX-512")[native.level()])
    finish(rows, table(rows), ("torch",), args.json)


if __name__ == "__main__":
    main()
