"""How far entries stand out in a picture or video model of the zoo: weights, inputs, the first token.

Why this file exists: methods against outliers can only be judged on a model whose outliers are known.

    python -m zoo.emoji_outliers zoo/unet-text
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.models.pipeline import denoiser, open_pipeline, requests, sample
from minifloat.models.prompts import read_prompts
from zoo.emoji_card import GUIDANCE, SEED, STEPS
from zoo.peaks import Peaks, peaks
from zoo.terrain_card import brief

ASKED = 8  # prompts of heldout.safetensors that are drawn
Figures = dict[str, tuple[float, ...]]  # by layer


def layers(network: nn.Module) -> dict[str, Any]:
    """The convolutions and linear layers by name."""
    kinds = (nn.Conv2d, nn.Linear)
    return {name: m for name, m in network.named_modules() if isinstance(m, kinds)}


def role(name: str) -> str:
    """What a layer does, for the rows of the tables: the end of its name without numbers."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return ".".join(parts[-2:] if parts[-1] != "proj" else parts[-3:])


def rows_of(x: Tensor, layer: nn.Module) -> Tensor:
    """An input as [tokens or pixels, channels]; rows of zeros, as padding has them, are left out."""
    matrix = x.movedim(1, -1) if isinstance(layer, nn.Conv2d) else x
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return matrix[matrix.abs().amax(1) > 0]


def worst(found: Figures, name: str, own: tuple[float, ...]) -> None:
    """Keep the larger of each figure."""
    before = found.get(name, own)
    found[name] = tuple(max(pair) for pair in zip(before, own, strict=True))


def of_inputs(network: nn.Module, draw: Callable[[], Any]) -> Figures:
    """The peaks of every layer's input, the worst over all calls while `draw` runs."""
    found: Figures = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def keep(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            own = peaks(rows_of(inputs[0], layer))
            worst(found, name, (*own, inputs[0].abs().amax().item()))

        return keep

    handles = [m.register_forward_pre_hook(watch(n)) for n, m in layers(network).items()]
    draw()
    for handle in handles:
        handle.remove()
    return found


def of_weights(network: nn.Module) -> Figures:
    """The peaks of every weight, rows being output channels and columns inputs."""
    return {
        name: (*peaks(m.weight.detach().flatten(1)), m.weight.abs().amax().item())
        for name, m in layers(network).items()
    }


def print_table(title: str, figures: Figures) -> None:
    """Print Markdown: the worst layer of each role."""
    roles: Figures = {}
    for name, own in figures.items():
        worst(roles, role(name), own)
    heads = [title, *(field.replace("_", " ") for field in Peaks._fields), "largest"]
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, own in roles.items():
        print(f"| {name} | " + " | ".join(map(brief, own)) + " |")


def first_token(text: Tensor) -> tuple[float, float, float]:
    """Of prompts [n, tokens, width]: the first token's largest entry, its ratio to the rms of all
    later entries, and the largest ratio that a later token reaches."""
    later = text[:, 1:][text[:, 1:].abs().amax(2) > 0]
    usual = later.square().mean().sqrt()
    largest = text[:, 0].abs().amax()
    return largest.item(), (largest / usual).item(), (later.abs().amax() / usual).item()


def key_inputs(network: nn.Module, draw: Callable[[], Any]) -> Tensor:
    """What the keys of cross-attention are made of, [prompts, tokens, width]."""
    seen: list[Tensor] = []
    name = next(name for name in layers(network) if name.endswith("attn2.to_k"))
    layer = network.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    draw()
    handle.remove()
    return seen[0]


def print_first_tokens(network: nn.Module, text: Tensor, draw: Callable[[], Any]) -> None:
    """Print how far the first token of prompts stands out, and what the keys are made of."""
    for name, own in (("prompts", text), ("input of attn2.to_k", key_inputs(network, draw))):
        largest, ratio, later = first_token(own)
        print(f"\n{name}: first token {largest:.1f}, {ratio:.1f} times the rms of later tokens")
        print(f"(whose own largest entry is {later:.1f} times it)")


def main() -> None:
    """Print the outlier tables of a model's card."""
    parser = argparse.ArgumentParser(prog="python -m zoo.emoji_outliers", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of model_index.json")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = open_pipeline(str(options.folder))
    network = denoiser(pipe)[1]
    held = options.folder / "heldout.safetensors"
    asked = requests(pipe, read_prompts(held) if held.exists() else None, ASKED, SEED)
    settings = {"seed": SEED, "steps": options.steps, "guidance": options.guidance, "batch": ASKED}

    def draw() -> None:
        sample(pipe, asked, **settings)

    print_table("weight", of_weights(network))
    print_table("input of", of_inputs(network, draw))
    if "prompt_embeds" in asked.values:
        print_first_tokens(network, asked.values["prompt_embeds"], draw)


if __name__ == "__main__":
    main()
