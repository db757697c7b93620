"""What studies of diffusion models share: a model with what calibrates and judges it, a run, a table.

A row is one run: an arm (settings of a method) and a seed, which chooses calibration prompts and
noise. Rows already in a file are skipped, so that a stopped study goes on.
"""

import argparse
import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.common import add_row, mean_and_spread, pending, read_rows
from minifloat.calibrate.stats import sqnr
from minifloat.calibrate.trajectories import record
from minifloat.evaluate.frechet import frechet, frechet_change
from minifloat.evaluate.images import psnr, ssim
from minifloat.evaluate.steps import predictions
from minifloat.layers import weights_held
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.adapter import Adapter
from minifloat.models.families import adapt
from minifloat.models.pipeline import denoiser, open_pipeline, sample
from minifloat.models.prompts import Prompts, read_prompts
from zoo import judge
from zoo.emoji_card import sheet

STEPS = 10  # of the sampler
PROMPTS, CALLS, BATCH = 8, 8, 4  # that calibrate: prompts, calls of the network kept, images in one
PICTURES, SHOWN = "pictures", 12  # kept of the first seed, for people
THIRDS = ("early", "middle", "late")
REFERENCE = "full precision"  # the arms of no quantization at all
OTHER_NOISE = "full precision, other noise"
COLUMNS = {
    "psnr": ("PSNR", 1),
    "ssim": ("SSIM", 3),
    **{third: (f"SQNR, {third}", 1) for third in THIRDS},
    "psnr1": ("PSNR, 1 step", 1),
    "psnr2": ("PSNR, 2 steps", 1),
    **{f"sqnr{sigma}": (f"SQNR at sigma {sigma}", 1) for sigma in (20, 40, 80)},
}


class Study(Protocol):
    """A model under study."""

    network: nn.Module
    features: dict[str, Tensor]  # of images, by arm and seed, where a feature network knows them

    def adapter(self, network: nn.Module) -> Adapter:
        """How a copy of the network is walked."""
        ...

    def calibration(self, seed: int) -> list[dict[str, Any]]:
        """Calls of the network along trajectories."""
        ...

    def judge(self, network: nn.Module, arm: str, seed: int) -> dict[str, float]:
        """Figures of a network in the place of the full-precision one."""
        ...


class Pipeline:
    """A text-to-image pipeline of the zoo, judged on held-out prompts with a noise for each seed.

    Figures are PSNR (peak 1) and SSIM of images to the full-precision model's from the same noise,
    and SQNR of the network's predictions in three parts of the full-precision trajectory.
    """

    def __init__(self, folder: Path, guidance: float, judged: int) -> None:
        self.pipe, self.guidance = open_pipeline(str(folder)), guidance
        self.name, self.network = denoiser(self.pipe)
        self.prompts = read_prompts(folder / "prompts.safetensors")
        self.judged = read_prompts(folder / "heldout.safetensors").spread(judged)
        self.features: dict[str, Tensor] = {}
        self.eyes = judge.load()
        self.calls = record(self.network, lambda: self.draw(self.judged.rows(0, BATCH), 1))
        self.outputs = predictions(self.network, self.calls)
        self.images: dict[int, Tensor] = {}
        self.batches: dict[int, list[dict[str, Any]]] = {}

    def adapter(self, network: nn.Module) -> Adapter:
        """The one of its family; a U-Net's layers that see concatenations are split."""
        return adapt(network)

    def draw(self, prompts: Prompts, seed: int) -> Tensor:
        """Images [n, channels, height, width] in 0..1."""
        arguments = {"seed": seed, "steps": STEPS, "guidance": self.guidance}
        return sample(self.pipe, prompts, batch=BATCH, **arguments)

    def calibration(self, seed: int) -> list[dict[str, Any]]:
        """Calls along the trajectories of prompts that are not judged."""
        if seed not in self.batches:
            start = PROMPTS * seed % (len(self.prompts) - PROMPTS + 1)
            asked = self.prompts.rows(start, start + PROMPTS)
            self.batches[seed] = record(
                self.network, lambda: self.draw(asked, 1000 + seed), limit=CALLS, seed=seed
            )
        return self.batches[seed]

    def judge(self, network: nn.Module, arm: str, seed: int) -> dict[str, float]:
        """Figures of a network in the pipeline; keeps the features of its images."""
        noise = 10_000 * (seed + 1)
        if seed not in self.images:
            self.images[seed] = self.draw(self.judged, noise)
            self.features[f"{REFERENCE}/{seed}"] = self.describe(self.images[seed])
        setattr(self.pipe, self.name, network)
        images = self.draw(self.judged, noise + 1000 * (arm == OTHER_NOISE))
        setattr(self.pipe, self.name, self.network)
        self.features[f"{arm}/{seed}"] = self.describe(images)
        if seed == 0:
            self.features[f"{PICTURES}/{arm}"] = pixels(images[:SHOWN])
            self.features[f"{PICTURES}/{REFERENCE}"] = pixels(self.images[0][:SHOWN])
        near = {"psnr": psnr, "ssim": ssim}
        figures = {k: float(m(images, self.images[seed]).mean()) for k, m in near.items()}
        if arm == OTHER_NOISE:
            return figures
        found = predictions(network, self.calls)
        for i, third in enumerate(THIRDS):
            span = slice(i * len(found) // 3, (i + 1) * len(found) // 3)
            expected = torch.cat(self.outputs[span])
            figures[third] = sqnr(expected, expected - torch.cat(found[span]))
        return figures

    @torch.no_grad()
    def describe(self, images: Tensor) -> Tensor:
        """Features [n, d] in half precision, as they are kept."""
        return self.eyes.describe(pixels(images)).half()


def pixels(images: Tensor) -> Tensor:
    """Images of 0..1 as bytes."""
    return (255 * images).round().to(torch.uint8)


def run(
    study: Study, method: str, arm: str, settings: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """One run: its figures, and what was chosen."""
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    if arm == OTHER_NOISE:
        return row | study.judge(study.network, arm, seed)
    network = copy.deepcopy(study.network)
    adapter = study.adapter(network)
    batches = study.calibration(seed)
    started = time.process_time()
    report = quantize(network, build(method, settings), batches, adapter=adapter)
    seconds = time.process_time() - started
    done = [entry for entry in report["ledger"] if entry["status"] == "quantized"]
    with weights_held(network):
        figures = study.judge(network, arm, seed)
    chosen = [entry["weight"].split()[0] for entry in done]
    inputs = [entry["input"].split()[0] for entry in done if entry["input"]]
    bits = sum(e["parameters"] * e["bits"] for e in done) / sum(e["parameters"] for e in done)
    return row | {
        **figures,
        "weights": {name: chosen.count(name) for name in sorted(set(chosen))},
        "inputs": {name: inputs.count(name) for name in sorted(set(inputs))},
        "zeros": report["zeros"]["after"],
        "bits": bits,
        "seconds": round(seconds, 1),
        "settings": dict(settings),
    }


def table(rows: Sequence[dict[str, Any]], arms: Sequence[str], features: dict[str, Tensor]) -> str:
    """Markdown, mean ± standard deviation over seeds where there are several."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    titles = ["arm", "seeds", *(COLUMNS[key][0] for key in keys)]
    titles += ["to full precision", "to held-out, change"] * bool(features)
    titles += ["formats", "zeros", "bits", "s"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm in arms:
        found = [row for row in rows if row["arm"] == arm]
        if not found:
            continue
        cells = [arm, str(len(found))]
        for key in keys:
            values = [row[key] for row in found if key in row]
            cells.append(mean_and_spread(values, COLUMNS[key][1]) if values else "")
        cells += distances(arm, [row["seed"] for row in found], features) if features else []
        lines.append("| " + " | ".join([*cells, *_chosen(found[0])]) + " |")
    return "\n".join(lines)


def distances(arm: str, seeds: Sequence[int], features: dict[str, Tensor]) -> list[str]:
    """Frechet distances of all seeds' images together, where they are enough for one."""
    found, before = (
        torch.cat([features[f"{name}/{seed}"] for seed in seeds]) for name in (arm, REFERENCE)
    )
    if len(found) < 2 * found.shape[1]:  # too few for covariances
        return ["", ""]
    real = judge.load().describe(load_file(judge.HELD_OUT)["images"]).detach()
    change = frechet_change(found, before, real)
    return [
        f"{frechet(found, before):.2f}",
        f"{change.value:+.2f} ({change.low:+.2f} to {change.high:+.2f})",
    ]


def _chosen(row: dict[str, Any]) -> list[str]:
    """The table's last cells: formats, zeros, bits and seconds."""
    if "bits" not in row:
        return ["", "", "", ""]
    parts = (row.get(key, {}).items() for key in ("weights", "inputs"))
    formats = "; ".join(", ".join(f"{name} {count}" for name, count in part) for part in parts)
    return [
        formats.strip("; "),
        f"{row['zeros']:.1%}",
        f"{row['bits']:.2f}",
        f"{row['seconds']:.0f}",
    ]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that studies share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--sheet", type=Path, help="with --table: a PNG, a row of images an arm")
    parser.add_argument("--pipeline", type=Path, help="folder of a pipeline of the zoo")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--judged", type=int, default=12, help="prompts")
    parser.add_argument("--arms", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100, help="of learned rounding")
    return parser


def go(
    study: Study, method: str, arms: Mapping[str, Mapping[str, str]], args: argparse.Namespace
) -> None:
    """Run what the file of rows lacks, each row with the features of its images."""
    kept = features_of(args.rows)
    for arm, seed in pending(read_rows(args.rows), args.arms or list(arms), args.seeds):
        settings = {"steps": str(args.steps)} | arms[arm]
        row = run(study, method, arm, settings, seed)
        kept |= study.features
        if kept:
            save_file(kept, features_file(args.rows))
        add_row(args.rows, row)


def show(arms: Mapping[str, Mapping[str, str]], args: argparse.Namespace) -> None:
    """Print the table of the rows so far, and write the sheet of their images."""
    kept = features_of(args.rows)
    print(table(read_rows(args.rows), list(arms), kept))
    if args.sheet:
        shown = [arm for arm in (REFERENCE, *arms) if f"{PICTURES}/{arm}" in kept]
        sheet([kept[f"{PICTURES}/{arm}"] for arm in shown]).save(args.sheet)
        print("rows of the sheet: " + "; ".join(shown))


def features_file(rows: Path) -> Path:
    """Where the features of a study's images lie: beside its rows."""
    return rows.with_suffix(".safetensors")


def features_of(rows: Path) -> dict[str, Tensor]:
    """Features [n, d] by arm and seed."""
    path = features_file(rows)
    return load_file(path) if path.exists() else {}
