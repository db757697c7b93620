"""transformers loads our exports through the real compressed-tensors: are its logits ours?

    python -m benchmarks.judge_transformers prepare MODEL DIR
    python -m benchmarks.judge_transformers score MODEL DIR

`prepare` rounds MODEL to nearest and exports it; `score` asks whichever version of the package is on
the path. FP4 and MX are loaded in bfloat16, which the package needs for them, and all others in
float32. Rounding in bfloat16 moves quantized inputs to other numbers, so that every model is also
computed in float32: transformers' with the weights that it decoded, ours with the same ones. Then
what is left is whether inputs are put on the grids that we mean. Our side takes the reference row. A
network with quantized inputs is not continuous, so that the last column says how far our own logits
move when the embeddings are multiplied by 1 + 1e-6 of noise.
"""

import argparse
import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.judge_vllm import prepare
from minifloat import formats
from minifloat.layers import QLinear, weights_held
from minifloat.models.load import load_model
from minifloat.spec import FP8_CHANNEL, FP8_TOKEN, MXFP4, NVFP4, LayerSpec, QuantSpec

IN_FLOAT32 = {
    "FP8_DYNAMIC": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    "W4A16, groups of 32": LayerSpec(QuantSpec(formats.INT4, (1, 32))),
}
IN_BFLOAT16 = {
    "NVFP4A16": LayerSpec(NVFP4),
    "NVFP4, calibrated inputs": LayerSpec(NVFP4, NVFP4),
    "MXFP4A16": LayerSpec(MXFP4),
    "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
}


def score(model_name: str, folder: Path) -> None:
    """The table of one version of the package."""
    prompts = json.loads((folder / "prompts.json").read_text())
    full, _ = load_model(model_name, dtype="float32")
    original = logits(full, prompts)
    print(f"compressed-tensors {version('compressed-tensors')}\n")
    print("| preset | weights | as loaded | first choice | in float32 | full precision | noise |")
    print("|---|---|---|---|---|---|---|")
    for name in (*IN_FLOAT32, *IN_BFLOAT16):
        print(f"| {name} | {' | '.join(row(folder, name, prompts, original))} |", flush=True)


def row(folder: Path, name: str, prompts: list[list[int]], original: Tensor) -> list[str]:
    """How far transformers is from us, by its weights and its logits; or its refusal."""
    from transformers import AutoModelForCausalLM

    try:
        theirs = AutoModelForCausalLM.from_pretrained(folder / "exported" / name, dtype="auto")
        found = logits(theirs.eval(), prompts)
    except Exception as error:
        return [f"{type(error).__name__}: {error}".splitlines()[0], *[""] * 5]
    ours, _ = load_model(str(folder / "native" / name), dtype="auto")
    with weights_held(ours):
        wanted = logits(ours, prompts)
    same = (found.argmax(1) == wanted.argmax(1)).float().mean()
    worst = max(_hold(layer, theirs.get_submodule(n)) for n, layer in _packed(ours).items())
    for model in (ours, theirs):
        nn.Module.float(model)  # transformers' own refuses quantized models
    exact = logits(ours, prompts)
    apart = _apart(logits(theirs, prompts), exact)
    embeddings = ours.get_input_embeddings().weight.data
    embeddings *= 1 + 1e-6 * torch.randn(
        embeddings.shape, generator=torch.Generator().manual_seed(0)
    )
    noise = _apart(logits(ours, prompts), exact)
    return [
        f"{worst:.1e}",
        f"{_apart(found, wanted):.1e}",
        f"{float(same):.1%}",
        f"{apart:.1e}",
        f"{_apart(exact, original):.1e}",
        f"{noise:.1e}",
    ]


def _packed(model: nn.Module) -> dict[str, QLinear]:
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, QLinear)}


def _hold(layer: QLinear, decoded: nn.Module) -> float:
    """Let our layer multiply with their weight; the largest relative difference from our own."""
    ours, theirs = layer.decoded().float(), decoded.get_parameter("weight").detach().float()
    layer._held = theirs
    return float(((theirs - ours) / ours).abs().nan_to_num().max())


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / two.norm())


def logits(model: Any, prompts: list[list[int]]) -> Tensor:
    """Of all prompts, one under the other."""
    with torch.no_grad():  # weights are cast afterwards
        return torch.cat([model(torch.tensor([p])).logits[0].float() for p in prompts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("prepare", "score"))
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    os.environ["MINIFLOAT_KERNEL"] = "reference"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.command == "prepare":
        prepare(arguments.model, arguments.folder, "float32", IN_FLOAT32)
        prepare(arguments.model, arguments.folder, "bfloat16", IN_BFLOAT16)
    else:
        score(arguments.model, arguments.folder)


if __name__ == "__main__":
    main()
