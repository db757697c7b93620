"""FP4DiT on a diffusion transformer: rounding, formats and activations, each against its rivals.

    python -m benchmarks.fp4dit --pipeline FOLDER --prompts FILE --rows results.jsonl [--arms NAME ...]
    python -m benchmarks.fp4dit --rows results.jsonl --table

The pipeline is a folder of diffusers (such as zoo/dit-text); prompts are words or ready embeddings. A
row is one run: PSNR (peak 1) and cosine of images to those of the full-precision model, from the same
noise and prompts, none of them used for calibration, and the SQNR of the network's predictions along
the full-precision trajectory in its first, middle and last third. Rows already in the file are
skipped, so that a stopped study goes on. Seeds choose the calibration prompts and trajectories.
"""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import add_row, mean_and_spread, pending, read_rows
from minifloat.calibrate.stats import sqnr
from minifloat.calibrate.trajectories import record
from minifloat.layers import weights_held
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.pipeline import denoiser, open_pipeline, sample
from minifloat.models.prompts import Prompts, read_prompts

A16 = {"activation_bits": "16"}
NEAREST = {"rounding": "nearest"}
GPTQ = {"rounding": "gptq"}
PLAIN = A16 | {"start": "nearest"}  # AdaRound as published
INT = {"family": "int"}
STATIC = {"online": "false"}
PUBLISHED = {"formats": "published", "search": "false"}
SIGMA = {"formats": "published-sigma", "search": "false"}
LITERAL = PUBLISHED | {"start": "nearest", "scale_aware": "true", "lr": "1e-4", "steps": "2500"}
ARMS: dict[str, dict[str, str]] = {
    "W4 nearest": A16 | NEAREST,
    "W4 GPTQ": A16 | GPTQ,
    "W4 AdaRound, 1e-3": PLAIN | {"lr": "1e-3"},
    "W4 AdaRound, 1e-2": PLAIN | {"lr": "1e-2"},
    "W4 AdaRound, 1e-1": PLAIN | {"lr": "1e-1"},
    "W4 scale-aware, 1e-4": PLAIN | {"lr": "1e-4", "scale_aware": "true"},
    "W4 scale-aware, 1e-3": PLAIN | {"lr": "1e-3", "scale_aware": "true"},
    "W4 learned from GPTQ": A16,
    "W4 published formats, nearest": A16 | PUBLISHED | NEAREST,
    "W4 Sigma's formats, nearest": A16 | SIGMA | NEAREST,
    "W4 searched formats, unsearched clip, nearest": A16 | NEAREST | {"search": "false"},
    "W4 published formats, GPTQ": A16 | PUBLISHED | GPTQ,
    "W4 Sigma's formats, GPTQ": A16 | SIGMA | GPTQ,
    "W4 INT, nearest": A16 | INT | NEAREST,
    "W4 INT, GPTQ": A16 | INT | GPTQ,
    "W4 INT, learned from GPTQ": A16 | INT,
    "W4 per row, GPTQ": A16 | GPTQ | {"group_size": "-1"},
    "W4A8 online, GPTQ": GPTQ | {"activation_bits": "8"},
    "W4A6 online, GPTQ": GPTQ,
    "W4A8 static, GPTQ": GPTQ | STATIC | {"activation_bits": "8"},
    "W4A6 static, GPTQ": GPTQ | STATIC,
    "W4A8 INT online, GPTQ": GPTQ | INT | {"activation_bits": "8"},
    "W4A6 INT online, GPTQ": GPTQ | INT,
    "W4A6 INT static, GPTQ": GPTQ | INT | STATIC,
    "W4A6 online and q, k, v, GPTQ": GPTQ | {"attention": "true"},
    "W4A8 learned": {"activation_bits": "8"},
    "W4A6 learned": {},
    "W4A6 INT learned": INT,
    "W4A6 published, 2500 steps": LITERAL,
}
STEPS = 20  # of the sampler
CALLS = 32  # that calibration keeps
THIRDS = ("early", "middle", "late")


class Study:
    """The full-precision model, what it is asked for, and what it answers."""

    def __init__(self, pipe: Any, prompts: Prompts, guidance: float, judged: int) -> None:
        self.pipe, self.prompts, self.guidance = pipe, prompts, guidance
        self.name, self.network = denoiser(pipe)
        self.judged = prompts.rows(len(prompts) - judged, len(prompts))
        self.images = self.draw(self.judged, 1)
        calls = record(self.network, lambda: self.draw(self.judged.rows(0, 8), 2))
        self.calls = calls
        self.outputs = predictions(self.network, calls)

    def draw(self, prompts: Prompts, seed: int) -> Tensor:
        """Images [n, channels, height, width] in 0..1."""
        arguments = {"seed": seed, "steps": STEPS, "guidance": self.guidance}
        return sample(self.pipe, prompts, batch=8, **arguments)

    def calibration(self, seed: int, count: int) -> list[dict[str, Any]]:
        """Calls of the network along trajectories of prompts that are not judged."""
        start = seed * count
        asked = self.prompts.rows(start, start + count)
        return record(self.network, lambda: self.draw(asked, 1000 + start), limit=CALLS, seed=seed)

    def judge(self, network: nn.Module) -> dict[str, float]:
        """Figures of a quantized network in the pipeline."""
        found = predictions(network, self.calls)
        figures = {}
        for i, third in enumerate(THIRDS):
            span = slice(i * len(found) // 3, (i + 1) * len(found) // 3)
            expected = torch.cat(self.outputs[span])
            figures[third] = sqnr(expected, expected - torch.cat(found[span]))
        setattr(self.pipe, self.name, network)
        images = self.draw(self.judged, 1)
        setattr(self.pipe, self.name, self.network)
        error = (images - self.images).square().mean((1, 2, 3))
        figures["psnr"] = float((-10 * torch.log10(error)).mean())
        cosine = nn.functional.cosine_similarity(images.flatten(1), self.images.flatten(1))
        return figures | {"cosine": float(cosine.mean())}


@torch.no_grad()
def predictions(network: nn.Module, calls: list[dict[str, Any]]) -> list[Tensor]:
    """The network's outputs, whether its caller wants a tuple or a record."""
    found = []
    for call in calls:
        output = network(**call)
        found.append(output[0] if isinstance(output, tuple) else output.sample)
    return found


def run(study: Study, arm: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run: its settings and figures."""
    settings = {"steps": str(args.steps), "mixed": str(args.mixed)} | ARMS[arm]
    network = copy.deepcopy(study.network)
    batches = study.calibration(seed, args.calibration)
    started = time.process_time()
    report = quantize(network, build("fp4dit", settings), batches)
    seconds = time.process_time() - started
    done = [row for row in report["ledger"] if row["status"] == "quantized"]
    with weights_held(network):
        figures = study.judge(network)
    chosen = [row["weight"].split()[0] for row in done]
    inputs = [row["input"].split()[0] for row in done if row["input"]]
    return {
        "arm": arm,
        "seed": seed,
        **figures,
        "bits": sum(r["parameters"] * r["bits"] for r in done) / sum(r["parameters"] for r in done),
        "weights": {name: chosen.count(name) for name in sorted(set(chosen))},
        "inputs": {name: inputs.count(name) for name in sorted(set(inputs))},
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, mean ± standard deviation over seeds where there are several."""
    names = {"psnr": "PSNR", "cosine": "cosine"} | {t: f"SQNR, {t}" for t in THIRDS}
    lines = ["| arm | seeds | " + " | ".join(names.values()) + " | formats | bits | s |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for arm in ARMS:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = []
        for key in names:
            digits = 4 if key == "cosine" else 1
            cells.append(mean_and_spread([row[key] for row in found], digits))
        first = found[0]
        formats = "; ".join(
            ", ".join(f"{name} {count}" for name, count in first[key].items())
            for key in ("weights", "inputs")
            if first[key]
        )
        tail = f"{formats} | {first['bits']:.2f} | {first['seconds']:.0f}"
        lines.append(f"| {arm} | {len(found)} | " + " | ".join(cells) + f" | {tail} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--pipeline")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="of learned rounding")
    parser.add_argument("--mixed", action="store_true", help="learn in bfloat16")
    parser.add_argument("--calibration", type=int, default=16, help="prompts")
    parser.add_argument("--judged", type=int, default=24, help="prompts")
    args = parser.parse_args()
    rows = read_rows(args.rows)
    if args.table:
        print(table(rows))
        return
    prompts = read_prompts(args.prompts)
    study = Study(open_pipeline(args.pipeline), prompts, args.guidance, args.judged)
    for arm, seed in pending(rows, args.arms, args.seeds):
        add_row(args.rows, run(study, arm, args, seed))


if __name__ == "__main__":
    main()
