"""The figures and the picture of the card of `zoo.terrain`.

Why this file exists: every number in the card comes out of one command.

    python -m zoo.terrain_card
"""

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zoo import terrain_reference, terrain_weights
from zoo.terrain import Attention, Block, Terrain, UNet, metres, sample

ROOT = Path(__file__).resolve().parent
RECORDED = ROOT.parent / "tests" / "zoo" / "terrain_onnxruntime.json"
PICTURE = ROOT / "terrain" / "samples.png"

LEVELS = (1, 15, 29, 43, 57, 71, 85, 100)  # difficulties as the package counts them
SIGMAS = (0.05, 5.0, 80.0)
SEED = 7
PIXEL = 0.1  # metres, as the package's simulators take it
GAP = 4  # white pixels between the images of the picture


def difficulties() -> Tensor:
    """LEVELS on the scale of the model, [8] in 0..1."""
    return (torch.tensor(LEVELS) - 1) / 99


# --- equality -----------------------------------------------------------------------------------


@torch.inference_mode()
def print_differences(model: Terrain) -> None:
    """Print the largest difference to the recorded pixels of onnxruntime, case by case."""
    images = model(*map(torch.tensor, terrain_reference.inputs())).numpy()
    picked = np.asarray(json.loads(RECORDED.read_text())["picked"])
    largest = np.abs(terrain_reference.picked(images) - picked).max(1)
    print("| sigma | difficulty | largest difference |\n|---|---|---|")
    for (sigma, difficulty), value in zip(terrain_reference.CASES, largest, strict=True):
        print(f"| {sigma:g} | {difficulty:g} | {value:.1e} |")


# --- outliers -----------------------------------------------------------------------------------


class Peaks(NamedTuple):
    """How far the largest entries of [channels, entries] stand out.

    A channel below a millionth of the rms of all counts for the last figure only.
    """

    whole: float  # the largest entry over the rms of all
    in_channel: float  # the same within a channel, in the worst one
    between: float  # the largest rms of a channel over the median one


def peaks(channels: Tensor) -> Peaks:
    """Measure channels [channels, entries]."""
    size = channels.abs()
    rms = size.square().mean(1).sqrt()
    whole = size.square().mean().sqrt()
    loud = rms > 1e-6 * whole
    return Peaks(
        (size.amax() / whole).item(),
        (size.amax(1) / rms)[loud].amax().item(),
        (rms.amax() / rms.median()).item(),
    )


def by_channel(x: Tensor) -> Tensor:
    """Bring [outer, channels, ...] to [channels, entries]: of activations, or of weights by input."""
    return x.transpose(0, 1).flatten(1)


def role(network: UNet, name: str) -> str:
    """What a layer does, for the rows of the tables."""
    parent, _, own = name.rpartition(".")
    holder = network.get_submodule(parent)
    if isinstance(holder, Block):
        fed = holder.skip_channels and own in ("conv_in", "shortcut")
        return f"{own}, fed by a skip" if fed else own
    if isinstance(holder, Attention):
        return f"attention.{own}"
    return name if isinstance(holder, UNet) else parent


def layers(network: UNet) -> dict[str, Any]:
    """The convolutions and linear layers by name."""
    kinds = (nn.Conv2d, nn.Linear)
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds)}


Inputs = dict[str, Tensor]  # the inputs of the layers, by name


@torch.inference_mode()
def record_inputs(model: Terrain, clean: Tensor, sigma: float) -> Inputs:
    """The input of each layer for clean images [8, 1, 128, 128] with noise of `sigma` added."""
    seen: Inputs = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: seen.update({name: inputs[0]})

    found = layers(model.network).items()
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in found]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    model(clean + sigma * noise, torch.full((len(clean),), sigma), difficulties())
    for hook in hooks:
        hook.remove()
    return seen


def worst(network: UNet, figures: Mapping[str, tuple[float, ...]]) -> dict[str, list[float]]:
    """The largest figures of each role out of those of each layer."""
    roles: dict[str, list[tuple[float, ...]]] = {}
    for name, row in figures.items():
        roles.setdefault(role(network, name), []).append(row)
    return {
        kind: [max(column) for column in zip(*rows, strict=True)] for kind, rows in roles.items()
    }


def print_table(title: str, columns: str, rows: dict[str, list[float]]) -> None:
    """Print Markdown: one row a role."""
    heads = [title, *columns.split(", ")]
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for kind, row in rows.items():
        print(f"| {kind} | " + " | ".join(map(brief, row)) + " |")


def brief(value: float) -> str:
    """A figure in the width of a column."""
    return f"{value:.1f}" if value < 1000 else f"{value:.0e}"


def print_outliers(model: Terrain, clean: Tensor) -> None:
    """Print the peaks of the weights and, at each of SIGMAS, of the inputs."""
    network = model.network
    weights = {name: module.weight.detach() for name, module in layers(network).items()}
    figures = {n: peaks(w.flatten(1)) + peaks(by_channel(w))[1:] for n, w in weights.items()}
    columns = "whole, in output, between outputs, in input, between inputs"
    print_table("weight", columns, worst(network, figures))
    largest: dict[str, list[float]] = {}
    for sigma in SIGMAS:
        inputs = record_inputs(model, clean, sigma)
        found = {n: peaks(by_channel(x)) for n, x in inputs.items()}
        print_table(
            f"input at sigma {sigma:g}", "whole, in channel, between", worst(network, found)
        )
        print_skips(network, inputs)
        for name, x in inputs.items():
            largest.setdefault(name, []).append(x.abs().amax().item())
    above = sum(max(row) > torch.finfo(torch.float16).max for row in largest.values())
    print(f"\n{above} of {len(largest)} inputs hold entries above the range of fp16")
    drift = {name: (max(row), max(row) / min(row)) for name, row in largest.items()}
    print_table("input", "largest entry, over that at another sigma", worst(network, drift))


def print_skips(network: UNet, inputs: Inputs) -> None:
    """Print the rms of what the down path adds to an input over the rms of the rest of it."""
    ratios = []
    for i, block in enumerate(network.up_blocks):
        if isinstance(block, Block) and block.skip_channels:
            x = inputs[f"up_blocks.{i}.shortcut"]
            rest, skip = x.tensor_split([x.shape[1] - block.skip_channels], 1)
            ratios.append((skip.square().mean() / rest.square().mean()).sqrt().item())
    print("\nskip rms / rest rms: " + ", ".join(f"{ratio:.1g}" for ratio in ratios))


# --- samples ------------------------------------------------------------------------------------


def shaded(heights: Tensor) -> Tensor:
    """Light from the upper left on heights [..., 128, 128] in metres: grey values in 0..1."""
    down, right = torch.gradient(heights, spacing=PIXEL, dim=(-2, -1))
    facing = (1 + 0.7 * (down + right)) / (1 + down**2 + right**2).sqrt()
    return (facing / 2**0.5).clamp(0, 1)


def tiled(rows: list[Tensor]) -> Tensor:
    """Rows of images [images, 128, 128] on white: [height, width]."""
    framed = [nn.functional.pad(row, (0, GAP, 0, GAP), value=1.0) for row in rows]
    return torch.cat([torch.cat(list(row), 1) for row in framed], 0)[:-GAP, :-GAP]


def stretched(heights: Tensor) -> Tensor:
    """Heights [images, 128, 128] as grey values, each image from black to white."""
    low, high = heights.amin((1, 2), True), heights.amax((1, 2), True)
    return (heights - low) / (high - low)


def png(grey: Tensor) -> bytes:
    """Encode grey values [height, width] in 0..1; each line says that it is not filtered."""
    height, width = grey.shape
    lines = nn.functional.pad((grey * 255).round().to(torch.uint8), (1, 0)).numpy().tobytes()
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(lines, 9),
        b"IEND": b"",
    }
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def print_terrains(model: Terrain) -> Tensor:
    """Draw the picture, print what the terrains measure and return them, [8, 1, 128, 128]."""
    print("\n| steps | figure | " + " | ".join(map(str, LEVELS)) + " |")
    print("|---" * (2 + len(LEVELS)) + "|")
    clean = {steps: sample(model, SEED, difficulties(), steps) for steps in (4, 1)}
    for steps, images in clean.items():
        heights = metres(images[:, 0])
        extent = heights.amax((1, 2)) - heights.amin((1, 2))
        slope = heights.diff(dim=2).square().mean((1, 2)).sqrt() / PIXEL
        for name, row in {"range, m": extent, "rms slope": slope}.items():
            print(f"| {steps} | {name} | " + " | ".join(f"{x:.2f}" for x in row.tolist()) + " |")
    heights = metres(clean[1][:, 0])
    PICTURE.write_bytes(png(tiled([stretched(heights), shaded(heights)])))
    return clean[1]


@torch.inference_mode()
def print_grain(model: Terrain, clean: Tensor) -> None:
    """Print how clean images [8, 1, 128, 128] come back from noise of each of several sigmas."""
    print("\n| sigma | rms error | rms step between neighbours |\n|---|---|---|")
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED + 1))
    for sigma in (0.0, 0.05, 0.5, 5.0, 20.0, 80.0):
        found = clean
        if sigma:
            found = model(clean + sigma * noise, torch.full((len(clean),), sigma), difficulties())
        error, step = (x.square().mean().sqrt() for x in (found - clean, found.diff(dim=3)))
        print(f"| {sigma:g} | {error:.3f} | {step:.3f} |")


def main() -> None:
    """Print the tables of the card and draw its picture."""
    model = terrain_weights.load()
    print_differences(model)
    clean = print_terrains(model)
    print_grain(model, clean)
    print_outliers(model, clean)


if __name__ == "__main__":
    main()
