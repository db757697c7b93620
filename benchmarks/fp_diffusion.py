"""Low-bit diffusion on the pretrained terrain U-Net: formats x rounding x granularity.

    python -m benchmarks.fp_diffusion --rows results.jsonl [--arms NAME ...] [--seeds 3]
    python -m benchmarks.fp_diffusion --rows results.jsonl --table

Every row is one run: PSNR of images against the full-precision model's from the same noise, after
one and two steps of its sampler (peak to peak 2), the SQNR of the network's output by noise level, and
the share of weights at zero. Rows already in the file are skipped, so that a stopped study goes on.
Seeds choose the calibration trajectories; the noise that images are judged on is the same in all.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import add_row, mean_and_spread, pending, read_rows
from minifloat.calibrate.stats import sqnr
from minifloat.layers import weights_held
from minifloat.method import quantize
from minifloat.methods import build
from zoo import terrain_weights
from zoo.terrain import SIZE, Terrain, sample
from zoo.terrain_adapter import adapter, trajectories

INT = {"family": "int"}
FP8 = {"weight_bits": "8", "rounding": "nearest"}
FP4 = {"weight_bits": "4", "rounding": "nearest"}
GROUP = {"group_size": "128"}
ALONE = {"activation_bits": "16"}
ARMS: dict[str, dict[str, str]] = {
    "FP8 weights alone": FP8 | ALONE,
    "FP8 weights alone, tensor objective": FP8 | ALONE | {"objective": "tensor"},
    "FP8/FP8": FP8,
    "INT8/INT8": FP8 | INT,
    "FP8/FP8 signed only": FP8 | {"unsigned": "false"},
    "INT8/INT8 signed only": FP8 | INT | {"unsigned": "false"},
    "FP8/FP8 unsearched clip": FP8 | {"search": "false"},
    "FP8/FP8 tensor objective": FP8 | {"objective": "tensor"},
    "FP4/FP8 nearest": FP4,
    "FP4/FP8 GPTQ": FP4 | {"rounding": "gptq"},
    "FP4/FP8 learned": FP4 | {"rounding": "learned"},
    "INT4/INT8 nearest": FP4 | INT,
    "INT4/INT8 GPTQ": FP4 | INT | {"rounding": "gptq"},
    "INT4/INT8 learned": FP4 | INT | {"rounding": "learned"},
    "FP4/FP8 g128 nearest": FP4 | GROUP,
    "FP4/FP8 g128 GPTQ": FP4 | GROUP | {"rounding": "gptq"},
    "FP4/FP8 g128 learned": FP4 | GROUP | {"rounding": "learned"},
    "INT4/INT8 g128 nearest": FP4 | INT | GROUP,
    "INT4/INT8 g128 learned": FP4 | INT | GROUP | {"rounding": "learned"},
}
SIGMAS = (20.0, 40.0, 80.0)  # between which the sampler works
JUDGED = (1, 2)  # seeds of the noise, four difficulties each


@torch.inference_mode()
def images(model: Terrain) -> dict[str, Tensor]:
    """What is judged: images after one and two steps, and network outputs by noise level."""
    difficulty = torch.linspace(0, 1, 4)
    found = {
        f"psnr{steps}": torch.cat([sample(model, seed, difficulty, steps) for seed in JUDGED])
        for steps in (1, 2)
    }
    clean = found["psnr2"][:4]
    for sigma in SIGMAS:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        scale = (sigma**2 + 0.25) ** -0.5
        time_ = torch.full((4,), 250 * torch.tensor(sigma).log())
        found[f"sqnr{sigma:g}"] = model.network((clean + sigma * noise) * scale, time_, difficulty)
    assert found["psnr1"].shape[-1] == SIZE
    return found


def judge(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """PSNR in dB, the mean over images, and SQNR in dB."""
    figures = {}
    for name, reference in expected.items():
        error = found[name] - reference
        if name.startswith("psnr"):
            each = 10 * torch.log10(4 / error.square().mean((1, 2, 3)))
            figures[name] = float(each.mean())
        else:
            figures[name] = sqnr(reference, error)
    return figures


def run(
    model: Terrain, expected: dict[str, Tensor], arm: str, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """One run: its settings and figures."""
    settings = ARMS[arm] | ({"steps": str(args.steps)} if "learned" in arm else {})
    candidate = copy.deepcopy(model)
    network = candidate.network
    walked = adapter(network)
    walked.split(network)
    batches = trajectories(model, runs=args.runs, batch=args.batch, seed=seed)
    started = time.perf_counter()
    report = quantize(network, build("fp-diffusion", settings), batches, adapter=walked)
    seconds = time.perf_counter() - started
    done = [row for row in report["ledger"] if row["status"] == "quantized"]
    with weights_held(candidate):
        figures = judge(images(candidate), expected)
    return {
        "arm": arm,
        "seed": seed,
        **figures,
        "zeros": report["zeros"]["after"],
        "bits": sum(r["parameters"] * r["bits"] for r in done) / sum(r["parameters"] for r in done),
        "seconds": round(seconds, 1),
        "steps": args.steps if "learned" in arm else 0,
        "calibration": [args.runs, args.batch],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, mean ± standard deviation over seeds where there are several."""
    names = {"psnr1": "PSNR, 1 step", "psnr2": "PSNR, 2 steps"}
    names |= {f"sqnr{sigma:g}": f"SQNR at sigma {sigma:g}" for sigma in SIGMAS}
    lines = ["| arm | seeds | " + " | ".join(names.values()) + " | zeros | bits | s |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = [mean_and_spread([row[key] for row in found]) for key in names]
        tail = f"{found[0]['zeros']:.1%} | {found[0]['bits']:.2f} | {found[0]['seconds']:.0f}"
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + f" | {tail} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=int, default=8, help="calibration runs of two steps")
    parser.add_argument("--batch", type=int, default=2, help="images a calibration run")
    args = parser.parse_args()
    rows = read_rows(args.rows)
    if args.table:
        print(table(rows))
        return
    model = terrain_weights.load()
    expected = images(model)
    for arm, seed in pending(rows, args.arms, args.seeds):
        add_row(args.rows, run(model, expected, arm, args, seed))


if __name__ == "__main__":
    main()
