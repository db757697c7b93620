"""Whole models on the CPU: tokens a second of a language model, seconds of an image, bytes of weights.

    python -m benchmarks.end_to_end --model FOLDER [--threads 1 2] [--llama FILE ...] [--compiled]
    python -m benchmarks.end_to_end --pipeline zoo/unet-text [--threads 1 2]
    python -m benchmarks.end_to_end --unet 320 640 [--threads 1 2]

Weights are rounded to nearest: the time does not depend on how they were rounded. A language model reads
a prompt and goes on with transformers' own `generate`; an image takes the pipeline's own sampler; a
U-Net of given channels, built as Stable Diffusion's with random weights, takes one step. Each
contestant runs in turn, all of them several times, and its best counts. `--llama` names GGUF files that
llama.cpp (node-llama-cpp) takes its turns with, in a process that waits while others run. On a machine
with other work, `--cpu` counts the processes' own time in place of the wall clock's (one thread alone).
"""

import argparse
import copy
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import finish
from minifloat import QuantizedCache
from minifloat.calibrate.trajectories import record
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.load import load_model
from minifloat.models.pipeline import denoiser, open_pipeline, sample
from minifloat.models.prompts import read_prompts

PROMPT, MORE = 256, 32  # tokens read, tokens written
NEAREST = {"solver": "nearest", "rank": "0", "search": "false"}
LANGUAGE = {
    "FP4 g128 x INT8": {"weight": "e2m1", "activation": "int8"},
    "FP4 g128 x FP8": {"weight": "e2m1", "activation": "e4m3"},
    "INT4 g32 x INT8": {"weight": "int4", "activation": "int8", "group_size": "32"},
    "INT8 x INT8": {"weight": "int8", "activation": "int8", "group_size": "-1"},
    "FP4 g128 x INT8, head INT8": {"weight": "e2m1", "activation": "int8", "head": "int8"},
    "FP4 g128 x FP8, head FP8": {"weight": "e2m1", "activation": "e4m3", "head": "e4m3"},
}
COMPILED = "FP4 g128 x INT8, head INT8"  # the contestant that takes part compiled too
IMAGES = {
    "FP4 x FP8": {},
    "FP8 x FP8": {"weight_bits": "8"},
    "INT4 x INT8": {"family": "int"},
    "INT8 x INT8": {"family": "int", "weight_bits": "8"},
    "FP4 x INT8": {"formats": "e2m1, int8"},
}
PLAIN = {"rounding": "nearest", "search": "false", "group_size": "-1"}
Figures = dict[str, float]
Contestant = Callable[[], Figures]
Clock = Callable[[], float]


def generating(
    model: Any, clock: Clock, cache: Callable[[], Any] | None = None, **how: Any
) -> Contestant:
    """Milliseconds of the prompt, and of each token after it; `how` goes to `generate`."""
    ids = torch.arange(PROMPT).unsqueeze(0) + 100

    @torch.inference_mode()
    def tokens(count: int) -> float:
        if cache is not None:
            how["past_key_values"] = cache()
        before = clock()
        model.generate(ids, max_new_tokens=count, do_sample=False, **how)
        return 1e3 * (clock() - before)

    def turn() -> Figures:
        first = tokens(1)
        return {"prompt, ms": first, "token, ms": (tokens(1 + MORE) - first) / MORE}

    return turn


def compiled() -> dict[str, Any]:
    """What `generate` is told to compile the decoding step, for which the cache has a fixed size."""
    from transformers import CompileConfig

    config = CompileConfig(mode="default", fullgraph=True)
    config._compile_all_devices = True  # it would compile for accelerators alone
    return {"compile_config": config}


def compiled_turns(model: Any, name: str, clock: Clock) -> dict[str, Contestant]:
    """A packed model compiled, with transformers' cache and with one in few bits."""
    few = copy.deepcopy(model)
    few.set_attn_implementation("minifloat")

    kept = QuantizedCache(few.config, "int8-token", capacity=PROMPT + MORE + 1)

    def cache() -> QuantizedCache:
        kept.reset()  # a new one would be compiled for anew
        return kept

    static = generating(model, clock, cache_implementation="static", **compiled())
    return {
        f"{name}, compiled": static,
        f"{name}, cache INT8, compiled": generating(few, clock, cache, **compiled()),
    }


def language_models(
    folder: str, only: list[str], clock: Clock, compile_one: bool
) -> tuple[dict[str, Contestant], dict[str, float]]:
    """Contestants, and bytes of their weights beside what theory says."""
    model, _ = load_model(folder, dtype="float32")
    model.generation_config.eos_token_id = None  # all texts are of one length
    turns = {"fp32": generating(model, clock)}
    if not only or "bf16" in only:
        turns["bf16"] = generating(copy.deepcopy(model).bfloat16(), clock)
    sizes: dict[str, float] = {}
    for name, settings in LANGUAGE.items():
        if only and name not in only:
            continue
        packed = copy.deepcopy(model)
        batch = torch.arange(16).unsqueeze(0)
        report = quantize(packed, build("zeroquant-fp", NEAREST | settings), [batch])
        turns[name], sizes[name] = generating(packed, clock), over_theory(packed, report)
        if compile_one and name == COMPILED:
            turns |= compiled_turns(packed, name, clock)
    return turns, sizes


def over_theory(model: nn.Module, report: dict[str, Any]) -> float:
    """Bytes of the tensors of the packed layers over their codes and scales."""
    rows = [row for row in report["ledger"] if row["status"] == "quantized"]
    theory = sum(row["parameters"] * row["bits"] / 8 for row in rows)
    held = 0
    for row in rows:
        layer = model.get_submodule(row["name"].rpartition(".")[0])
        own = {name: t for name, t in layer.state_dict().items() if name != "bias"}
        held += sum(t.numel() * t.element_size() for t in own.values())
    return held / theory


def pipelines(
    folder: str, only: list[str], steps: int, images: int, clock: Clock
) -> tuple[dict[str, Contestant], dict[str, float]]:
    """The same for a diffusion pipeline."""
    prompts = read_prompts(Path(folder) / "heldout.safetensors").rows(0, images)

    def sampling(pipe: Any) -> Contestant:
        def turn() -> Figures:
            before = clock()
            sample(pipe, prompts, seed=0, steps=steps, guidance=2.0, batch=images)
            return {"image, ms": 1e3 * (clock() - before) / images}

        return turn

    turns, sizes = {"fp32": sampling(open_pipeline(folder))}, {}
    for name in chosen(only):
        pipe = open_pipeline(folder)
        _, network = denoiser(pipe)
        calls = record(network, sampling(pipe), limit=2, seed=0)
        sizes[name] = pack(network, name, calls)
        turns[name] = sampling(pipe)
    return turns, sizes


def unets(
    channels: list[int], only: list[str], clock: Clock
) -> tuple[dict[str, Contestant], dict[str, float]]:
    """The same for a step of a U-Net on latents of 32 x 32, twice for guidance."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * len(channels),
        up_block_types=["CrossAttnUpBlock2D"] * len(channels),
        cross_attention_dim=768,
    ).eval()
    call = {
        "sample": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768),
    }

    def stepping(network: nn.Module) -> Contestant:
        @torch.inference_mode()
        def turn() -> Figures:
            before = clock()
            network(**call)
            return {"step, ms": 1e3 * (clock() - before)}

        return turn

    turns, sizes = {"fp32": stepping(network)}, {}
    for name in chosen(only):
        packed = copy.deepcopy(network)
        sizes[name] = pack(packed, name, [call])
        turns[name] = stepping(packed)
    return turns, sizes


def chosen(only: list[str]) -> list[str]:
    return [name for name in IMAGES if not only or name in only]


def pack(network: nn.Module, name: str, calls: list[Any]) -> float:
    """Pack a denoiser as IMAGES says; bytes over theory."""
    return over_theory(
        network, quantize(network, build("fp-diffusion", PLAIN | IMAGES[name]), calls)
    )


class Llama:
    """llama.cpp in a process of its own that answers one turn at a time."""

    def __init__(self, file: str, threads: int, clock: str) -> None:
        script = str(Path(__file__).with_name("llama_cpp_turns.mjs"))
        command = ["node", script, file, str(PROMPT), str(MORE), str(threads), clock]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __call__(self) -> Figures:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: Figures = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        self.process.communicate()


def race(turns: dict[str, Contestant], rounds: int) -> dict[str, Figures]:
    """The least of each figure over rounds in which everyone has a turn; the first does not count."""
    least: dict[str, Figures] = {}
    for turn in turns.values():
        turn()
    for _ in range(rounds):
        for name, turn in turns.items():
            figures = turn()
            known = least.setdefault(name, figures)
            least[name] = {key: min(value, known[key]) for key, value in figures.items()}
    return least


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds, how many times faster than fp32, and bytes over theory, in Markdown."""
    keys = list(rows[0]["ms"])
    first = {row["threads"]: row for row in rows if row["name"] == "fp32"}
    head = [
        "contestant",
        "threads",
        *keys,
        *(f"fp32 / it, {key}" for key in keys),
        "bytes / theory",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        slow = first[row["threads"]]["ms"]
        cells = [row["name"], str(row["threads"]), *(f"{row['ms'][key]:.1f}" for key in keys)]
        cells += [f"{slow[key] / row['ms'][key]:.2f}" for key in keys]
        cells += [f"{row['bytes']:.3f}" if row["bytes"] else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a language model")
    parser.add_argument("--pipeline", help="folder of a pipeline with its held-out prompts")
    parser.add_argument("--unet", nargs="+", type=int, metavar="CHANNELS", help="of its levels")
    parser.add_argument("--llama", nargs="+", metavar="FILE", default=[], help="GGUF files")
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="beside fp32")
    parser.add_argument("--cpu", action="store_true", help="count the processes' own time")
    parser.add_argument("--compiled", action="store_true", help="one contestant compiled too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if sum(given is not None for given in (args.model, args.pipeline, args.unet)) != 1:
        parser.error("give one of --model, --pipeline and --unet")
    clock = time.process_time if args.cpu else time.perf_counter
    if args.model:
        turns, sizes = language_models(args.model, args.only, clock, args.compiled)
    elif args.pipeline:
        turns, sizes = pipelines(args.pipeline, args.only, args.steps, args.images, clock)
    else:
        turns, sizes = unets(args.unet, args.only, clock)
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        peers = {
            f"llama.cpp {Path(file).parent.name}": Llama(file, threads, clock.__name__)
            for file in args.llama
        }
        for name, ms in race(turns | peers, args.rounds).items():
            rows.append({"name": name, "threads": threads, "ms": ms, "bytes": sizes.get(name)})
        for peer in peers.values():
            peer.close()
    print(f"load {os.getloadavg()[0]:.1f}, {clock.__name__}")
    finish(rows, table(rows), ["torch", "transformers", "diffusers"], args.json)


if __name__ == "__main__":
    main()
