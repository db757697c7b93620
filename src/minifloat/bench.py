"""How fast a checkpoint's layers run on this machine's CPU, beside torch's own, and what bounds them.

The layers' shapes and specs are a checkpoint's, their weights random: speed does not depend on them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minifloat.errors import UserError
from minifloat.export.stored import stored_layers
from minifloat.kernels.table import pick, why
from minifloat.page import document, section, table, write
from minifloat.plan import Plan
from minifloat.roofline import Dot, roofline
from minifloat.spec import FP4_G128, FP8_CHANNEL, FP8_TOKEN, INT8_TOKEN, LayerSpec
from minifloat.timing import Call, best, copies, packed, packed_copies, peers, plain, rotating

TOKENS = (1, 4, 16, 64, 256, 1024)
# Without a checkpoint: what a first look at a machine wants to know.
USUAL = {
    ((4096, 4096), LayerSpec(FP4_G128, INT8_TOKEN)): 1,
    ((4096, 4096), LayerSpec(FP8_CHANNEL, FP8_TOKEN)): 1,
}
Layers = dict[tuple[tuple[int, int], LayerSpec], int]


def layers_of(folder: Path) -> Layers:
    """How often a checkpoint holds each kind of linear layer: (out, in) and spec.

    Raises:
        UserError: no packed linear layers there.
    """
    found: Counter[tuple[tuple[int, int], LayerSpec]] = Counter()
    for path in [folder / "config.json", *sorted(folder.glob("*/config.json"))]:
        if not path.is_file():
            continue
        quantization = json.loads(path.read_text()).get("quantization_config") or {}
        if quantization.get("quant_method") != "minifloat":
            continue
        plan = Plan.from_json({"rules": quantization.get("rules", [])})
        heads = quantization.get("tied", {}).values()
        for name, stored in stored_layers(quantization).items():
            spec = plan.spec_of(name)
            if stored.kernel is not None or (stored.embedding and name not in heads):
                continue
            if stored.shape is not None and spec is not None:
                found[stored.shape, spec] += 1
    if not found:
        raise UserError(f"{folder} is no minifloat checkpoint with packed linear layers")
    return dict(found)


@torch.inference_mode()
def measure(
    layers: Layers, tokens: tuple[int, ...] = TOKENS, seconds: float = 1.0
) -> Iterator[dict[str, Any]]:
    """One row for each kind of layer and number of tokens, as it is measured."""
    generator = torch.Generator().manual_seed(0)
    for (shape, spec), count in layers.items():
        w = torch.randn(shape, generator=generator)
        size = sum(buffer.nbytes for buffer in packed(w, spec).buffers())
        calls: dict[str, Call] = {"ours": rotating(packed_copies(w, spec, copies(size)))}
        calls |= peers(w)
        for n in tokens:
            x = torch.randn(n, shape[1], generator=generator)
            yield {
                "shape": list(shape),
                "weight": str(spec.weight),
                "input": None if spec.input is None else str(spec.input),
                "layers": count,
                "kernel": pick("linear", spec, "cpu").name,
                "kernel_reason": why("linear", spec, "cpu"),
                "tokens": n,
                "bytes": size + 4 * n * sum(shape),
                "ms": best(calls, x, seconds),
            }


@torch.inference_mode()
def limits(size: int = 1 << 26, side: int = 1024) -> dict[str, float]:
    """What this machine reaches: GB/s of a long sum, and G operations/s of torch's fp32 product."""
    long, square = torch.ones(size), torch.randn(side, side)
    layer = plain(square)
    read = best({"sum": lambda x: long.sum()}, square, 0.5)["sum"]
    product = best({"product": layer}, square, 0.5)["product"]
    return {"bandwidth": 4e-6 * size / read, "fp32": 2e-6 * side**3 / product}


def report(rows: list[dict[str, Any]], reached: dict[str, float], folder: Path) -> Path:
    """Write `bench.json` and `bench.html`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), **reached}
    write(folder / "bench.json", json.dumps({"rows": rows, **facts}, indent=1) + "\n")
    dots = [_dot(row, name) for row in rows for name in row["ms"] if name in ("ours", "torch fp32")]
    peak = max([reached["fp32"], *(dot.speed for dot in dots)])
    body = [
        "<header><p class='over'>minifloat</p><h1>Speed of packed layers</h1></header>",
        section("Milliseconds", table(HEAD, map(cells, rows), 3), "Best of interleaved calls."),
        section(
            "Roofline",
            f'<div class="wide">{roofline(dots, reached["bandwidth"], peak)}</div>',
            "Ours in blue, torch fp32 in orange. The slope is the measured memory bandwidth, the flat "
            "roof the fastest product of this run.",
        ),
        section("Machine", table(["", "value"], [
            ("memory bandwidth", f"{reached['bandwidth']:.1f} GB/s"),
            ("torch fp32 product", f"{reached['fp32']:.0f} G operations/s"),
            ("threads", facts["threads"]), ("torch", facts["torch"]),
        ])),
    ]  # fmt: skip
    page = folder / "bench.html"
    write(page, document("Speed of packed layers", body))
    return page


HEAD = ["layers", "quantized", "row", "tokens", "ours", "torch fp32", "torch bf16", "torch int8",
        "best peer / ours"]  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table in words."""
    ms: dict[str, float] = row["ms"]
    others = [value for name, value in ms.items() if name != "ours"]
    kind = row["weight"] if row["input"] is None else f"{row['weight']}, {row['input']}"
    kernel = row["kernel"] + (f" ({row['kernel_reason']})" if row["kernel_reason"] else "")
    shape = f"{row['layers']} of {row['shape'][0]} x {row['shape'][1]}"
    times = [f"{ms[name]:.3f}" for name in HEAD[4:8]]
    return [shape, kind, kernel, str(row["tokens"]), *times, f"{min(others) / ms['ours']:.2f}"]


def _dot(row: dict[str, Any], name: str) -> Dot:
    operations = 2 * row["tokens"] * row["shape"][0] * row["shape"][1]
    traffic = {
        "ours": row["bytes"],
        "torch fp32": 4 * (row["shape"][0] * row["shape"][1] + row["tokens"] * sum(row["shape"])),
    }[name]
    label = f"{name}, {row['shape'][0]} x {row['shape'][1]}, {row['tokens']} tokens"
    speed = 1e-6 * operations / row["ms"][name]
    return Dot(label, operations / traffic, speed, "a" if name == "ours" else "b")
