"""A Flux-shaped transformer in bfloat16, rounded to nearest block by block.

    python -m benchmarks.flux_shaped FOLDER [--memory 6GB] [--layers 19] [--work]

Flux.1 has 19 blocks of two streams and 38 of one; `--layers N` makes N and 2 N of the same width. Random
weights are written into FOLDER/model (23.8 GB at 19). Its pipeline always draws a megapixel, which a CPU
takes an hour for, so the library is called on its own: one call of 64 image tokens and 32 of text. The
process that does the work (`--work`) is watched from outside, as in `larger_than_memory.py`.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch import Tensor

from benchmarks.larger_than_memory import draw, row, watch
from minifloat.calibrate.journal import Journal
from minifloat.export.native import save
from minifloat.jobs.memory import bytes_of, estimate
from minifloat.jobs.unfinished import unfinished
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.lazy_denoiser import load_denoiser_lazily
from minifloat.plan import Plan
from minifloat.shards import write

NEAREST = {"solver": "nearest", "rank": "0", "search": "false"}
TOKENS, WORDS = 64, 32


def model(folder: Path, layers: int) -> None:
    """Write the model, unless it is there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with init_empty_weights():
        network = FluxTransformer2DModel(num_layers=layers, num_single_layers=2 * layers)
    torch.manual_seed(0)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in network.state_dict().items():
            yield name, torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(0, 0.02)

    write(folder, tensors(), stem="diffusion_pytorch_model")
    network.save_config(folder)


def call() -> dict[str, Any]:
    """One call of the denoiser."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    return {
        "hidden_states": noise(1, TOKENS, 64),
        "encoder_hidden_states": noise(1, WORDS, 4096),
        "pooled_projections": noise(1, 768),
        "timestep": torch.tensor([0.5]).bfloat16(),
        "img_ids": torch.zeros(TOKENS, 3),
        "txt_ids": torch.zeros(WORDS, 3),
    }


def work(source: Path, out: Path, limit: int) -> None:
    """Quantize within a limit of memory; a run that was stopped goes on."""
    network, adapter, lazy = load_denoiser_lazily(source, FluxTransformer2DModel)
    method = build("zeroquant-fp", NEAREST)
    found = estimate(network, adapter, lazy, TOKENS + WORDS, inverts=method.inverts)
    print(found, flush=True)
    journal = Journal(
        unfinished(out), {"files": lazy.stamp()}, resume=any(unfinished(out).glob("*.safetensors"))
    )
    where: Any = {"journal": journal, "weights": lazy, "budget": found.activations(limit)}
    report = quantize(network, method, [call()], adapter=adapter, **where)
    out.mkdir(exist_ok=True)
    plan = Plan.from_json(report["plan"])
    size = report["size"] | {"after": save(network, plan, out, journal.tensors())}
    (out / "report.json").write_text(json.dumps({"size": size}))
    shutil.rmtree(unfinished(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--layers", type=int, default=19)
    parser.add_argument("--work", action="store_true")
    args = parser.parse_args()
    source, out = args.folder / "model", args.folder / "nearest"
    if args.work:
        work(source, out, bytes_of(args.memory))
        return
    model(source, args.layers)
    command = [sys.executable, "-m", "benchmarks.flux_shaped", str(args.folder), "--work"]
    curve = out.with_suffix(".jsonl")
    peak = watch([*command, "--memory", args.memory], curve)
    draw(curve, curve.with_suffix(".svg"))
    print(row("nearest", args.memory, out, curve, peak))


if __name__ == "__main__":
    main()
