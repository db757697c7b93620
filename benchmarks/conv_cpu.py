"""Milliseconds of packed convolutions of a U-Net's shapes on the CPU, against torch's fp32.

    python -m benchmarks.conv_cpu [--json FILE]

Two images, one scale a row of the weight. Static inputs have one scale, as `fp-diffusion` calibrates
them; "a pixel" scales each pixel by itself, which torch does before the product. "decoded" is our
reference row: the weight to fp32, then torch. One thread, its CPU time, the best of interleaved calls.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import finish
from minifloat import formats
from minifloat.kernels import reference
from minifloat.layers import QConv2d
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import INT8_CHANNEL, INT8_TOKEN, LayerSpec, QuantSpec
from minifloat.timing import Call, best

FP4 = QuantSpec(formats.E2M1)
INT8, FP8 = QuantSpec(formats.INT8, (-1, -1)), QuantSpec(formats.E4M3, (-1, -1))
SPECS = {
    "fp4 x int8": LayerSpec(FP4, INT8),
    "int8 x int8": LayerSpec(INT8_CHANNEL, INT8),
    "fp4 x fp8": LayerSpec(FP4, FP8),
    "fp4 x fp32": LayerSpec(FP4),
    "fp4 x int8 a pixel": LayerSpec(FP4, INT8_TOKEN),
}
# (channels in and out, height and width, kernel)
SHAPES = ((64, 32, 3), (320, 32, 3), (640, 16, 3), (320, 32, 1))


def packed(conv: nn.Conv2d, spec: LayerSpec) -> QConv2d:
    assert spec.weight is not None
    layer = QConv2d(conv, spec)
    scale = Scale(torch.full((1, 1), 0.03)) if spec.static_input else None
    layer.fill(encode(conv.weight, spec.weight), bias=conv.bias, input_scale=scale)
    return layer


def measure(channels: int, size: int, kernel: int) -> dict[str, Any]:
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    rows: dict[str, Call] = {name: packed(conv, spec) for name, spec in SPECS.items()}
    first = packed(conv, SPECS["fp4 x int8"])
    rows["decoded"] = lambda x: reference.conv2d(x, first.packed(), first)
    rows["torch fp32"] = conv
    ms = best(rows, torch.randn(2, channels, size, size), 3)
    shape = f"{channels} channels, {size} x {size}, {kernel} x {kernel}"
    return {"shape": shape, "ms": ms, "load": os.getloadavg()[0]}


def table(rows: list[dict[str, Any]]) -> str:
    head = ["convolution", *rows[0]["ms"], "fp32 / fp4 x int8", "load"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        ms = row["ms"]
        cells = [row["shape"], *(f"{value:.2f}" for value in ms.values())]
        cells += [f"{ms['torch fp32'] / ms['fp4 x int8']:.2f}", f"{row['load']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = [measure(*shape) for shape in SHAPES]
    finish(rows, table(rows), ("torch",), args.json)


if __name__ == "__main__":
    main()
