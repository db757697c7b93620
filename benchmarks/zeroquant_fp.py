"""ZeroQuant-FP's table (card 1c) on a real language model: formats x solver x scale constraint.

    python -m benchmarks.zeroquant_fp --rows results.jsonl [--planted] [--seeds 3] [--model PATH]
    python -m benchmarks.zeroquant_fp --rows results.jsonl --table

Every row is one run: its settings, seed, held-out perplexity and KL to the full-precision model. Rows
already in the file are skipped, so that a stopped study goes on. `--planted` multiplies norm gains of
chosen channels and divides the matching columns of the layers they feed (card 1f.5): the function
stays the same, activations gain outlier channels.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import add_row, read_rows
from minifloat.evaluate.compare import compare
from minifloat.layers import weights_held
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.load import load_model, read_tokens, sample_windows

COLUMNS = {
    "W8A8 INT/INT": ("int8", "int8"),
    "W8A8 INT/FP": ("int8", "e4m3"),
    "W8A8 FP/FP": ("e4m3", "e4m3"),
    "W4A8 INT/INT": ("int4", "int8"),
    "W4A8 INT/FP": ("int4", "e4m3"),
    "W4A8 FP/FP": ("e2m1", "e4m3"),
}
WEIGHT_ONLY = {
    "W8A16 INT": ("int8", "none"),
    "W8A16 FP": ("e4m3", "none"),
    "W4A16 INT": ("int4", "none"),
    "W4A16 FP": ("e2m1", "none"),
}
SOLVERS = {
    "RTN": {"solver": "nearest", "rank": "0"},
    "GPTQ": {"solver": "gptq", "rank": "0"},
    "GPTQ+LoRC": {"solver": "gptq", "rank": "8"},
}
CONSTRAINTS = ("none", "m1", "m2")


def settings(seeds: int, columns: list[str], constraints: list[str]) -> Iterator[dict[str, Any]]:
    """Every run of the table, the rows that matter most first: W4 and unconstrained, seed by seed."""
    rows = [
        {"column": column, "solver": solver, "constraint": constraint, "seed": seed}
        for seed in range(seeds)
        for constraint in constraints
        for column in columns
        for solver in SOLVERS
        if solver != "RTN" or seed == 0  # rounding to nearest needs no data
    ]

    def last(row: dict[str, Any]) -> bool:
        return row["column"].startswith("W8") and (row["constraint"] != "none" or row["seed"] > 0)

    yield from sorted(rows, key=last)


def plant_outliers(model: nn.Module, factor: float = 50.0, channels: int = 4) -> None:
    """Outlier channels at every block's two norms, undone exactly in the layers they feed."""
    generator = torch.Generator().manual_seed(0)
    for block in model.get_decoder().layers:  # type: ignore[operator,union-attr]
        attention, mlp = block.self_attn, block.mlp
        fed = {
            block.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            block.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, layers in fed.items():
            chosen = torch.randperm(norm.weight.numel(), generator=generator)[:channels]
            norm.weight.data[chosen] *= factor
            for layer in layers:
                layer.weight.data[:, chosen] /= factor


class Remembered(nn.Module):
    """A model that answers every window once and then from memory: the reference of every run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.answers: dict[bytes, Any] = {}

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        key = input_ids.numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.model(input_ids, **kwargs)
        return self.answers[key]


def run(reference: Remembered, tokens: torch.Tensor, held_out: torch.Tensor, row: dict[str, Any],
        args: argparse.Namespace) -> dict[str, Any]:  # fmt: skip
    """One run: the row with its figures."""
    weight, activation = (COLUMNS | WEIGHT_ONLY)[row["column"]]
    chosen = SOLVERS[row["solver"]] | {
        "weight": weight,
        "activation": activation,
        "constraint": row["constraint"],
        "group_size": str(args.group_size),
        "search": str(args.search).lower(),
    }
    windows = sample_windows(tokens, args.samples, args.length, row["seed"])
    candidate = copy.deepcopy(reference.model)
    started = time.perf_counter()
    report = quantize(candidate, build("zeroquant-fp", chosen), torch.split(windows, 8))
    seconds = time.perf_counter() - started
    with weights_held(candidate):
        metrics = compare(reference, candidate, held_out, window=args.length)
    found = {metric["name"]: metric for metric in metrics}
    done = [entry for entry in report["ledger"] if entry["status"] == "quantized"]
    values = sum(entry["parameters"] for entry in done)
    return row | {
        "perplexity": found["perplexity"]["quantized"],
        "full_precision": found["perplexity"]["full_precision"],
        "kl": found["KL divergence"]["quantized"],
        "top1": found["top-1 agreement"]["quantized"],
        "bits": sum(entry["parameters"] * entry["bits"] for entry in done) / values,
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Perplexity and KL divergence in Markdown, mean ± standard deviation over seeds."""
    parts = []
    columns = [c for c in COLUMNS | WEIGHT_ONLY if any(row["column"] == c for row in rows)]
    for title, key, digits in (("Perplexity", "perplexity", 2), ("KL divergence", "kl", 4)):
        lines = [
            f"{title} (full precision {rows[0]['full_precision'] if key == 'perplexity' else 0:.2f})",
            "",
            "| constraint | solver | " + " | ".join(columns) + " |",
            "|---" * (2 + len(columns)) + "|",
        ]
        for constraint in CONSTRAINTS:
            for solver in SOLVERS:
                found = [r for r in rows if (r["constraint"], r["solver"]) == (constraint, solver)]
                cells = [
                    _cell([r for r in found if r["column"] == c], key, digits) for c in columns
                ]
                lines.append(f"| {constraint} | {solver} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(rows: list[dict[str, Any]], key: str, digits: int) -> str:
    """Seeds are counted where there is more than one, so that a half-done study shows as such."""
    values = [row[key] for row in rows]
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "-"
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--model", default="")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--evaluate", type=int, default=4096)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--weight-only", action="store_true")
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS))
    parser.add_argument("--constraints", nargs="*", default=list(CONSTRAINTS))
    args = parser.parse_args()
    rows = read_rows(args.rows)
    if args.table:
        print(table(rows))
        return
    if not args.model:
        from minifloat.demo import demo_model

        args.model = str(demo_model())
    model, tokenizer = load_model(args.model, dtype="float32")
    if args.planted:
        plant_outliers(model)
    reference = Remembered(model)
    tokens = read_tokens(tokenizer, None, default="calibration")
    held_out = read_tokens(tokenizer, None, default="heldout")[: args.evaluate]
    keys = ("column", "solver", "constraint", "seed")
    known = {tuple(row[key] for key in keys) for row in rows}
    columns = list(WEIGHT_ONLY) if args.weight_only else args.columns
    for row in settings(args.seeds, columns, args.constraints):
        if tuple(row[key] for key in keys) in known:
            continue
        add_row(args.rows, run(reference, tokens, held_out, row, args))


if __name__ == "__main__":
    main()
