"""The page of `kernels_cpu_peers`: milliseconds, and how much faster ours is than the best peer."""

import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from minifloat.kernels import native

Cell = dict[str, Any]
OURS = "minifloat"
HOW = """\
Rows are named weights x activations, "g32" a scale for 32 numbers in a row; without it weights have a
scale a row, INT8 activations one a token (torch's and onnxruntime's one a call, quanto's a static one).
onnxruntime, OpenVINO and ggml write to memory that is bound once, the others allocate it in every call.
The error is that of 16 tokens to the product of the unquantized numbers, all of them random; each row
was found to compute the product of its own decoded weight within 3 %. One thread: the least CPU time of
the process; more: of the wall clock. Calls are interleaved, weights rotate among copies that together
exceed the caches."""


def is_ours(name: str) -> bool:
    return name.startswith(OURS)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def summary(cells: Sequence[Cell], bits: int) -> list[str]:
    """The best peer's time over our best, of weights of at most so many bits, and whose it is."""
    tokens = [str(row["tokens"]) for row in cells[0]["rows"]]

    def ratio(cell: Cell, ms: dict[str, float]) -> str:
        peers = [name for name in ms if not is_ours(name) and cell["bits"][name] <= bits]
        peer = min(peers, key=ms.__getitem__)
        ours = min(ms[name] for name in ms if is_ours(name) and cell["bits"][name] <= bits)
        return f"{ms[peer] / ours:.2f} ({peer})"

    rows = [
        [f"{cell['shape']}, {cell['threads']}", *(ratio(cell, row["ms"]) for row in cell["rows"])]
        for cell in cells
    ]
    return markdown(["out x in, threads; tokens:", *tokens], rows)


def times(cell: Cell) -> list[str]:
    """Milliseconds of every row of a cell, the least of each number of tokens in bold."""
    rows = cell["rows"]

    def line(name: str) -> list[str]:
        texts = [text(row["ms"][name], min(row["ms"].values())) for row in rows]
        return [name, str(cell["bits"][name]), f"{100 * cell['errors'][name]:.2f}", *texts]

    head = ["weights x activations", "bits", "error, %", *(str(row["tokens"]) for row in rows)]
    loads = ["load", "", "", *(f"{row['load']:.1f}" for row in rows)]
    return markdown(head, [*(line(name) for name in rows[0]["ms"]), loads])


def text(ms: float, least: float) -> str:
    digits = f"{ms:.3f}" if ms < 10 else f"{ms:.1f}"
    return f"**{digits}**" if ms == least else digits


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores, {native.LEVELS[native.level()]}"


def page(cells: Sequence[Cell], command: str, versions: dict[str, str], note: str) -> str:
    """The report in Markdown: how it was made, the ratios, the times, and who is missing."""
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = ["# Packed layers on the CPU, against other libraries", ""]
    lines += [f"{date.today()}, {machine()}; {packages}.", *([note] if note else []), ""]
    lines += [f"    {command}", "", HOW, "", "## The best peer's time over our best", ""]
    lines += [*summary(cells, bits=32), "", "Weights of 4 bits alone:", "", *summary(cells, bits=4)]
    for cell in cells:
        threads = f"{cell['threads']} thread{'s' if cell['threads'] > 1 else ''}"
        lines += ["", f"## {cell['shape']}, {threads}: milliseconds by tokens", "", *times(cell)]
        absent = [f"- Not timed: {name}: {why}." for name, why in cell["absent"].items()]
        lines += ["", *absent] if absent else []
    return "\n".join(lines) + "\n"
