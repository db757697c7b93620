"""Milliseconds of a linear layer on the CPU: ours against every library that installs.

    pip install 'minifloat[peers]'
    python -m benchmarks.kernels_cpu_peers --threads 1 2 --ggml FOLDER [--out FILE.md] [--json FILE]

FOLDER holds libggml.so and its CPU libraries, as the npm package `@node-llama-cpp/linux-x64` brings
them built (`bins/linux-x64`). Every row first multiplies 16 tokens: what is further from the product
with the weight that its own codes stand for than INT8 activations explain is not timed, and neither
is a library that is absent or refuses a shape; both are named. Then calls are interleaved and each
one's least time is taken (`minifloat.timing.best`), weights rotating among copies that together exceed
the caches. Every shape and number of threads has a process of its own, of 5 GB for the large one.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels_cpu import OURS, TOKENS
from benchmarks.peers import Built, Peer, gather, versions
from benchmarks.peers.page import Cell, page
from minifloat.kernels import native
from minifloat.memory import give_back
from minifloat.spec import LayerSpec
from minifloat.timing import Call, best, copies, packed_copies, rotating

# SmolLM2's `down_proj` and a square attention layer of Stable Diffusion's U-Net beside the large one.
SHAPES = ["4096x4096", "576x1536", "1280x1280"]
ROWS = ("fp4 x int8", "fp4 g32 x int8", "fp4 x fp8", "fp4 x fp32", "int8 x int8", "fp8 x fp8")
# One scale for all activations of a call, with 7 of 8 bits (torch's x86 engine), is off by 2 %.
TOLERANCE = 0.03


def ours(spec: LayerSpec, w: Tensor, count: int) -> Built:
    layers = packed_copies(w, spec, count)
    return Built(list(layers), layers[0].decoded())


def our_rows() -> dict[str, Peer]:
    specs = {name: OURS[name] for name in ROWS}
    return {
        f"minifloat {name}": Peer(spec.weight.format.bits, partial(ours, spec))
        for name, spec in specs.items()
        if spec.weight is not None
    }


def distance(y: Tensor, x: Tensor, w: Tensor) -> float:
    """How far y is from the product x w^T, relative to it."""
    exact = x @ w.T
    return float((y - exact).norm() / exact.norm())


def checked(built: Built, w: Tensor, x: Tensor) -> float:
    """The distance to the unquantized product.

    Raises:
        ValueError: the product is not that of the layer's own weight.
    """
    y = built.calls[0](x).float().clone()
    off = distance(y, x, built.weight)
    if not off < TOLERANCE:
        raise ValueError(f"its product is {off:.1%} off its own weight's")
    return distance(y, x, w)


def prepare(calls: list[Call], x: Tensor) -> None:
    """Call every copy once, or for a second: first calls lay out weights and plan for a shape."""
    ends = time.perf_counter() + 1
    for call in calls:
        call(x)
        if time.perf_counter() > ends:
            return


@torch.inference_mode()
def measure(shape: str, threads: int, seconds: float, ggml: Path | None) -> Cell:
    """Every row of one shape, in a process that does nothing else."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    out_features, in_features = map(int, shape.split("x"))
    w, x = torch.randn(out_features, in_features), torch.randn(16, in_features)
    found, absent = gather(ggml)
    cell: Cell = {"shape": shape, "threads": threads, "rows": [], "bits": {}, "errors": {}}
    layers = {}
    for name, peer in (our_rows() | found).items():
        try:
            built = peer.build(w, copies(w.numel() * peer.bits // 8))
            cell["errors"][name] = checked(built, w, x)
        except Exception as error:  # whatever a library says: it is named and the others go on
            absent[name] = f"{type(error).__name__}: {error}"
            continue
        cell["bits"][name], layers[name] = peer.bits, built.calls
        give_back()  # what the library left over while it quantized: gigabytes of small copies
    rows = {name: rotating(calls) for name, calls in layers.items()}
    for tokens in TOKENS:
        x = torch.randn(tokens, in_features)
        for calls in layers.values():
            prepare(calls, x)
        ms = best(rows, x, seconds, rounds=3)
        cell["rows"].append({"tokens": tokens, "ms": ms, "load": os.getloadavg()[0]})
        print(shape, threads, cell["rows"][-1], flush=True)
    return cell | {"absent": absent}


def apart(shape: str, threads: int, seconds: float, ggml: Path | None) -> Cell:
    """`measure` in a process of its own, whose OpenMP libraries start with so many threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure, shape, threads, seconds, ggml).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="out x in")
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=5, help="for each number of tokens")
    parser.add_argument("--ggml", type=Path, help="folder of libggml.so")
    parser.add_argument("--note", default="", help="a sentence on the machine, for the report")
    parser.add_argument("--out", type=Path, help="report in Markdown")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if native.library() is None:
        raise SystemExit("minifloat was installed without a C compiler; there is nothing to time")
    cells = [
        apart(shape, threads, args.seconds, args.ggml)
        for shape in args.shapes
        for threads in args.threads
    ]
    command = f"python -m benchmarks.kernels_cpu_peers --threads {' '.join(map(str, args.threads))}"
    command += f" --shapes {' '.join(args.shapes)} --seconds {args.seconds:g} --ggml FOLDER"
    used = versions(args.ggml)
    report = page(cells, command, used, args.note)
    print(report)
    if args.out is not None:
        args.out.write_text(report)
    if args.json is not None:
        args.json.write_text(json.dumps({"cells": cells, "versions": used}, indent=2) + "\n")


if __name__ == "__main__":
    main()
