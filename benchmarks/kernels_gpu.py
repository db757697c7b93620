"""Times of the GPU kernels: linear layers, attention over a KV cache in few bits, fusions, blocks.

    python -m benchmarks.kernels_gpu [--json FILE] [--parts products attention fusions blocks]
        [--shapes 4096x4096 14336x4096] [--tokens 1 16 256]

Attention, fusions and blocks are described in `gpu_*.py`; the rest is about layers.

Ours are named weight x activations; activations are bf16, and their rounding is part of the time. Peers
are cuBLAS in bf16 (`torch.nn.functional.linear`), cuBLASLt in FP8 (`torch._scaled_mm`) and INT8
(`torch._int_mm`) on operands that are quantized beforehand, and Humming where `humming-kernels` is
installed. A row's copies together exceed the last-level cache, as the layers of a model do; one CUDA
graph calls them in turn, so that no launch waits for Python, and the best of the replays counts. The
memory limit is the time that the packed bytes take at the best measured bandwidth of a large sum or
copy. Every row is compared with the reference before it is timed.
"""

import argparse
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_attention, gpu_blocks, gpu_fusions
from benchmarks.common import finish
from benchmarks.gpu_time import bandwidth, copies, microseconds
from minifloat import formats
from minifloat.kernels.reference import linear as reference
from minifloat.spec import (
    FP4_G128,
    FP8_CHANNEL,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP6,
    QOQ_G128,
    LayerSpec,
    QuantSpec,
)
from minifloat.timing import Call, packed

M2 = QuantSpec(formats.E2M1, (1, 128), QuantSpec(formats.POW4, (1, -1)))
OURS = {
    "fp4 x bf16": LayerSpec(FP4_G128),
    "mxfp4 x bf16": LayerSpec(MXFP4),
    "fp6 x bf16": LayerSpec(replace(MXFP6, tile=(1, 128))),
    "fp8 x bf16": LayerSpec(FP8_CHANNEL),
    "fp4 m2 x fp8": LayerSpec(M2, FP8_TOKEN),
    "fp4 x fp8": LayerSpec(FP4_G128, FP8_TOKEN),
    "fp8 x fp8": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    "fp4 x int8": LayerSpec(FP4_G128, INT8_TOKEN),
    "int4 qoq x int8": LayerSpec(QOQ_G128, INT8_TOKEN),
    "int8 x int8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
}
PARTS: dict[str, Any] = {
    "products": None,
    "attention": gpu_attention,
    "fusions": gpu_fusions,
    "blocks": gpu_blocks,
}
SHAPES = ["4096x4096", "14336x4096", "4096x14336"]
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)


def ours(w: Tensor, spec: LayerSpec, name: str) -> tuple[list[Call], int]:
    """Copies of a layer, checked against the reference, and the bytes of one."""
    first = packed(w, spec).to(w.device)
    if (row := first.kernel("cuda").name) != "triton":
        raise SystemExit(f"{name} runs the row {row}, not triton")
    x = torch.randn(33, w.shape[1], device=w.device)
    torch.testing.assert_close(first(x), reference(x, first.packed()), rtol=1e-4, atol=1e-3)
    size = sum(buffer.numel() * buffer.element_size() for buffer in first.buffers())
    return [deepcopy(first) for _ in range(copies(size))], size


def bf16(w: Tensor) -> Call:
    own = w.bfloat16()
    return lambda x: torch.nn.functional.linear(x, own)


def fp8(w: Tensor) -> Call:
    own = w.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=w.device)

    def call(x: Tensor) -> Tensor:
        return torch._scaled_mm(x, own, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return call


def int8(w: Tensor) -> Call:
    own = w.clamp(-1, 1).mul(127).to(torch.int8).t()
    return lambda x: torch._int_mm(x, own)


def humming(w: Tensor) -> Call:
    from humming.layer import HummingLayer

    layer = HummingLayer(
        shape_n=w.shape[0],
        shape_k=w.shape[1],
        weight_config={"dtype": "float4e2m1", "group_size": 128},
        torch_dtype=torch.bfloat16,
    ).cuda()
    layer.load_from_unquantized(w.bfloat16())
    layer.transform()
    call: Call = layer
    return call


def peers(w: Tensor, tokens: int) -> dict[str, tuple[list[Call], torch.dtype]]:
    """Copies of each peer for so many tokens, and the dtype of the activations that it takes."""
    size = w.numel()
    found = {"cublas bf16": ([bf16(w) for _ in range(copies(2 * size))], torch.bfloat16)}
    if tokens % 16 == 0:  # what cuBLASLt asks of FP8
        found["cublas fp8"] = ([fp8(w) for _ in range(copies(size))], torch.float8_e4m3fn)
    if tokens > 16:  # what torch asks of INT8
        found["cublas int8"] = ([int8(w) for _ in range(copies(size))], torch.int8)
    if find_spec("humming"):
        found["humming fp4"] = ([humming(w) for _ in range(copies(size // 2))], torch.bfloat16)
    return found


def measure(shape: str, counts: list[int], speed: float) -> list[dict[str, Any]]:
    """One row for every number of tokens."""
    out_features, in_features = map(int, shape.split("x"))
    generator = torch.Generator("cuda").manual_seed(0)
    w = torch.randn(out_features, in_features, generator=generator, device="cuda")
    inputs = {
        n: torch.randn(n, in_features, generator=generator, device="cuda").bfloat16()
        for n in counts
    }
    rows: dict[int, dict[str, Any]] = {
        n: {"shape": shape, "tokens": n, "us": {}, "limit": {}} for n in counts
    }
    for name, spec in OURS.items():
        layers, size = ours(w, spec, name)
        for n, x in inputs.items():
            rows[n]["us"][name] = microseconds(layers, x)
            rows[n]["limit"][name] = (size + 2 * n * (in_features + out_features)) / speed
    for n, x in inputs.items():
        for name, (calls, dtype) in peers(w, n).items():
            rows[n]["us"][name] = microseconds(calls, x.to(dtype))
        print(rows[n], flush=True)
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds in Markdown; in brackets the share of the memory limit at one token, the ratio of
    cuBLAS bf16 to ours everywhere."""
    names = list(dict.fromkeys(name for row in rows for name in row["us"]))
    lines = [
        "| " + " | ".join(["weight", "tokens", *names]) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for row in rows:
        us = row["us"]
        cells = [row["shape"].replace("x", " x "), str(row["tokens"])]
        for name in names:
            text = f"{us[name]:.1f}" if name in us else ""
            if name in OURS:
                text += f" ({us['cublas bf16'] / us[name]:.2f}x"
                text += f", {row['limit'][name] / us[name]:.0%})" if row["tokens"] == 1 else ")"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; run this on a machine that has one")
    rows: list[dict[str, Any]] = []
    tables = []
    with torch.inference_mode():
        speed = bandwidth()
        print(f"{torch.cuda.get_device_name()}: {1e-6 * speed:.2f} TB/s")
        for part in args.parts:
            if part == "products":
                found = [row for s in args.shapes for row in measure(s, args.tokens, speed)]
                tables.append(table(found))
            else:
                found = PARTS[part].measure(speed)
                tables.append(PARTS[part].table(found))
            rows += [{"part": part} | row for row in found]
    packages = ["torch", "triton", *(["humming-kernels"] if find_spec("humming") else [])]
    finish(rows, "\n\n".join(tables), packages, args.json)


if __name__ == "__main__":
    main()
