"""GPTQ of one weight against llm-compressor's own routine: seconds and output error.

    python -m benchmarks.gptq [--json FILE] [--repeats 3] [--shapes 576x1536 4096x4096]

INT4 symmetric, groups of 128 columns, damping 0.01, blocks of 128. Both get the same weight, the same
Hessian and the same min-max scales (ours), so only the solvers differ. llm-compressor is called as
`GPTQModifier.compress_module_list` calls it: a batch of one, working copies made before, which are
not counted; the copies that ours makes, and its packing into codes, are. Repeats alternate between
the two in one process and the minimum counts, since other work on the machine only ever adds time.

Needs llm-compressor (`pip install llmcompressor==0.14.0.1`) in the environment; it is no dependency.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import finish
from minifloat.passes.gptq import gptq
from minifloat.qtensor import decode, encode, scale_of
from minifloat.scales import Scale
from minifloat.spec import INT4_G128

SPEC = INT4_G128
GROUP = 128
DAMP = 0.01
SHAPES = ["576x1536", "4096x4096"]


def problem(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A weight and the second moment of inputs as transformers have them.

    A few directions carry most of the energy, every channel has some noise of its own, and channel
    gains are log-normal with a handful of outliers, so that neither the order of the columns nor
    their correlation is trivial.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, directions = 2 * columns, columns // 8
    spectrum = torch.arange(1, directions + 1) ** -0.5
    mix = spectrum[:, None] * torch.randn(directions, columns, generator=generator)
    gains = torch.exp(0.5 * torch.randn(columns, generator=generator))
    gains[torch.randperm(columns, generator=generator)[:4]] *= 20
    x = torch.randn(tokens, directions, generator=generator) @ mix
    x = (x + torch.randn(tokens, columns, generator=generator)) * gains
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    return weight, x.T @ x / tokens


def output_error(weight: Tensor, solved: Tensor, hessian: Tensor) -> float:
    """tr(E H E^T) as a share of the output's own energy tr(W H W^T)."""
    energies = [((e @ hessian) * e).double().sum() for e in (weight - solved, weight)]
    return float(energies[0] / energies[1])


def solve_ours(weight: Tensor, hessian: Tensor, scale: Scale, order: bool) -> tuple[float, Tensor]:
    """Seconds of minifloat's solver, and its weight."""
    started = time.perf_counter()
    q = gptq(weight, hessian, SPEC, scale=scale, damp=DAMP, act_order=order)
    return time.perf_counter() - started, decode(q)


def solve_theirs(
    weight: Tensor, hessian: Tensor, scale: Scale, order: bool
) -> tuple[float, Tensor]:
    """Seconds of llm-compressor's solver, and its weight."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    arguments = QuantizationArgs(
        num_bits=4,
        type="int",
        symmetric=True,
        strategy="group",
        group_size=GROUP,
        actorder="weight" if order else None,  # its name for: sort columns, keep their groups
    )
    values = scale.values(SPEC)[None]
    batch = weight[None].clone(), hessian[None].clone()  # both are overwritten
    started = time.perf_counter()
    with torch.no_grad():
        solved, _, fell_back = quantize_weight(
            *batch, values, torch.zeros_like(values), None, arguments, percdamp=DAMP
        )
    seconds = time.perf_counter() - started
    assert not bool(fell_back.any()), "it rounded to nearest: the Hessian could not be inverted"
    return seconds, solved[0]


def compare(shape: str, order: bool, repeats: int) -> dict[str, Any]:
    """One row: the least seconds of each and the output errors."""
    rows, columns = map(int, shape.split("x"))
    weight, hessian = problem(rows, columns)
    scale = scale_of(weight, SPEC)
    solvers = {"ours": solve_ours, "theirs": solve_theirs}
    seconds = dict.fromkeys(solvers, float("inf"))
    errors = {"nearest": output_error(weight, decode(encode(weight, SPEC, scale)), hessian)}
    for _ in range(repeats):
        for name, solve in solvers.items():
            spent, solved = solve(weight, hessian, scale, order)
            seconds[name] = min(seconds[name], spent)
            if name not in errors:  # the same every time
                errors[name] = output_error(weight, solved, hessian)
    return {"shape": shape, "act_order": order, "seconds": seconds, "errors": errors}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown; errors in percent of the output's energy."""
    lines = [
        "| weight | act-order | minifloat s | llm-compressor s | speed-up "
        "| minifloat error % | llm-compressor error % | nearest error % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, errors = row["seconds"], row["errors"]
        cells = [
            row["shape"].replace("x", " x "),
            "yes" if row["act_order"] else "no",
            f"{seconds['ours']:.2f}",
            f"{seconds['theirs']:.2f}",
            f"{seconds['theirs'] / seconds['ours']:.2f}",
            *(f"{100 * errors[name]:.4f}" for name in ("ours", "theirs", "nearest")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    args = parser.parse_args()
    if find_spec("llmcompressor") is None:
        raise SystemExit("llm-compressor is not installed: pip install llmcompressor==0.14.0.1")
    rows = [compare(shape, o, args.repeats) for shape in args.shapes for o in (False, True)]
    finish(rows, table(rows), ("torch", "llmcompressor", "compressed-tensors"), args.json)


if __name__ == "__main__":
    main()
