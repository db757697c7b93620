"""Learned rounding of one block: the published loop against ours.

    python -m benchmarks.reconstruction --rows results.jsonl [--block down_blocks.21]
    python -m benchmarks.reconstruction --rows results.jsonl --block transformer_blocks.3 \\
        --pipeline FOLDER --prompts FILE

The plain twin is the loop of BRECQ and Q-Diffusion as published: Adam at 1e-3 on V for 20,000 steps of
32 images, a sum over channels and a mean over the rest, lambda 0.01, beta from 20 to 2 after a warm-up
of 20 %. It takes a block's inputs and targets from two full runs of the network, which are timed apart.
Shorter runs and tuned learning rates of it are timed too, since 20,000 steps may be more than needed.

Both see the same inputs and targets (blocks before are rounded by GPTQ), start from the same scales, and
are judged by hard weights on batches that neither learned from: error relative to rounding to nearest.
Times are those of the processor, so that other work on the machine does not count.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map, tree_map_only

from benchmarks.common import add_row, read_rows
from minifloat import formats
from minifloat.calibrate.runs import Call
from minifloat.calibrate.stats import quantizable
from minifloat.calibrate.trajectories import record
from minifloat.calibrate.walk import Window, Work, walk
from minifloat.models.adapter import Adapter
from minifloat.models.families import adapter_for
from minifloat.models.pipeline import denoiser, open_pipeline, sample
from minifloat.models.prompts import read_prompts
from minifloat.passes.assign import assign_scales, collect, round_to_nearest
from minifloat.passes.gptq import solve_gptq
from minifloat.passes.learn import learn_rounding
from minifloat.rounding import neighbours
from minifloat.spec import LayerSpec, QuantSpec
from minifloat.tiles import expand
from zoo import terrain_weights
from zoo.terrain_adapter import adapter, trajectories

FP4 = QuantSpec(formats.E2M1, (1, 128), formats.FP16)


class Source(NamedTuple):
    """A network, how it is walked, and what its sampler feeds it."""

    network: nn.Module
    adapter: Adapter
    batches: list[dict[str, Any]]


def terrain(runs: int, batch: int) -> Source:
    """The pretrained U-Net; runs of two steps."""
    model = terrain_weights.load()
    batches = trajectories(model, runs=runs, batch=batch, seed=0)
    return Source(model.network, adapter(model.network), batches)


def transformer(pipeline: str, prompts: Path, calls: int) -> Source:
    """The denoiser of a pipeline, with prompts that are drawn in 20 steps, guided."""
    pipe = open_pipeline(pipeline)
    network = denoiser(pipe)[1]
    asked = read_prompts(prompts).rows(0, 32)
    found = record(
        network, lambda: sample(pipe, asked, seed=0, steps=20, guidance=3.0, batch=8), limit=calls
    )
    return Source(network, adapter_for(network), found)


def windows(source: Source, name: str) -> tuple[Window, Window]:
    """The block with batches to learn on and batches to judge on, behind blocks rounded by GPTQ."""
    block = copy.deepcopy(source.network.get_submodule(name)).requires_grad_(False)
    walked = copy.deepcopy(source.network)
    blocks = source.adapter.blocks(walked)
    specs = {n: LayerSpec(FP4) for prefix, b in blocks.items() for n in quantizable(b, prefix)}
    seen: dict[str, tuple[list[Call], list[Tensor]]] = {}

    def keep(window: Window) -> None:
        seen[window.name] = (list(window.calls), list(window.targets))

    passes = (keep, collect(), assign_scales(), solve_gptq())
    for window in walk(walked, source.adapter, source.batches, specs, passes):
        if window.name == name:
            break
        seen.pop(window.name)
    calls, targets = seen[name]
    works = {n: Work(m, LayerSpec(FP4)) for n, m in quantizable(block, name).items()}
    cut = len(calls) - len(calls) // 4
    learn = Window(name, block, works, calls[:cut], targets[:cut])
    assign_scales()(learn)
    return learn, Window(name, block, works, calls[cut:], targets[cut:])


@torch.no_grad()
def recording(source: Source, name: str) -> float:
    """Seconds that the published loop spends on a block's inputs and targets: two full runs."""
    found: list[Any] = []
    handle = source.network.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.append((args, output))
    )
    started = time.process_time()
    for _ in range(2):  # weights quantized, then full precision: of equal cost here
        for arguments in source.batches:
            source.network(**arguments)
    handle.remove()
    return time.process_time() - started


@torch.no_grad()
def held_out_error(judge: Window, weights: dict[str, Tensor]) -> float:
    """Sum of squares over the held-out batches."""
    error = 0.0
    for call, target in zip(judge.calls, judge.targets, strict=True):
        error += float((run_block(judge, weights, call) - target).square().sum())
    return error


def run_block(window: Window, weights: dict[str, Tensor], call: Call) -> Tensor:
    """The block's output with other weights [out, in]."""
    named = {
        f"{name.removeprefix(window.name + '.')}.weight": w.view(
            window.layers[name].module.weight.shape
        )
        for name, w in weights.items()
    }
    out: Tensor = functional_call(window.block, named, call.args, call.kwargs)
    return out


def joined(calls: list[Call]) -> Any:
    """The arguments of all calls as those of one: samples one after the other."""
    trees = [(call.args, call.kwargs) for call in calls]
    return tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *trees)


def plain_twin(
    window: Window, steps: int, lr: float, *, images: int = 32, weight: float = 0.01
) -> dict[str, Tensor]:
    """BRECQ's loop as published, on the grid of the spec; returns hard weights [out, in]."""
    arguments = joined(window.calls)
    target = torch.cat(window.targets)
    low, gap, variable = {}, {}, {}
    for name, work in window.layers.items():
        w = work.weight()
        scale = expand(work.scale.values(FP4), w.shape, FP4.tile)
        below, above = neighbours(w / scale, FP4.format)
        low[name], gap[name] = below * scale, (above - below) * scale
        rest = torch.where(gap[name] > 0, (w - low[name]) / gap[name], 0.5).clamp(0, 1)
        variable[name] = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()

    def share(name: str) -> Tensor:
        return (1.2 * torch.sigmoid(variable[name]) - 0.1).clamp(0, 1)

    optimizer = torch.optim.Adam(variable.values(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        chosen = torch.randperm(len(target), generator=generator)[:images]
        soft = {name: low[name] + gap[name] * share(name) for name in variable}
        args, kwargs = tree_map_only(Tensor, lambda x, rows=chosen: x[rows], arguments)
        output = run_block(window, soft, Call("", args, kwargs))
        loss = (output - target[chosen]).square().sum(1).mean()
        if step >= 0.2 * steps:
            beta = 2 + 18 * (1 - (step / steps - 0.2) / 0.8)
            for name in variable:
                loss = loss + weight * (1 - (2 * share(name) - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: (low[n] + gap[n] * (v >= 0)).detach() for n, v in variable.items()}


def ours(window: Window, **settings: Any) -> dict[str, Tensor]:
    """Our passes, Hessians included; hard weights [out, in]."""
    with torch.no_grad():
        collect()(window)
        learn_rounding(lr=0.1, **settings)(window)
    return {name: work.quantized_weight() for name, work in window.layers.items()}


ARMS: dict[str, Callable[[Window], dict[str, Tensor]]] = {
    f"twin, {steps} steps at {lr:g}": lambda w, steps=steps, lr=lr: plain_twin(w, steps, lr)
    for steps, lr in ((1_000, 1e-3), (1_000, 1e-2), (5_000, 1e-3), (20_000, 1e-3))
} | {
    f"ours from {start}, {steps} steps{', bfloat16' * mixed}": (
        lambda w, steps=steps, start=start, mixed=mixed: ours(
            w, steps=steps, start=start, mixed=mixed
        )
    )
    for start in ("nearest", "gptq")
    for steps, mixed in ((100, False), (300, False), (300, True), (1000, False))
}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| arm | error relative to nearest | seconds | ms a step |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['arm']} | {row['error']:.3f} | {row['seconds']:.1f} | {row['ms']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--block", default="down_blocks.21")
    parser.add_argument("--runs", type=int, default=16, help="runs of the sampler, of two steps")
    parser.add_argument("--batch", type=int, default=4, help="images a run")
    parser.add_argument("--pipeline", help="a folder of diffusers in the place of terrain")
    parser.add_argument("--prompts", type=Path, help="for it: words or ready embeddings")
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--rows", type=Path, required=True)
    args = parser.parse_args()
    if args.pipeline:
        source = transformer(args.pipeline, args.prompts, 2 * args.runs)
    else:
        source = terrain(args.runs, args.batch)
    learn, judge = windows(source, args.block)
    weights = sum(work.module.weight.numel() for work in learn.layers.values())
    seconds = recording(source, args.block)
    print(f"{args.block}: {weights} weights; {seconds:.1f} s to record inputs and targets")
    round_to_nearest()(learn)
    nearest = {name: work.quantized_weight() for name, work in learn.layers.items()}
    floor = held_out_error(judge, nearest)
    known = {row["arm"] for row in read_rows(args.rows)}
    for arm in args.arms:
        if arm in known:
            continue
        started = time.process_time()
        found = ARMS[arm](learn)
        spent = time.process_time() - started
        steps = int(arm.split(", ")[1].split()[0])
        error = held_out_error(judge, found) / floor
        ms = 1000 * spent / steps
        add_row(args.rows, {"arm": arm, "error": error, "seconds": spent, "ms": ms})
    print(table(read_rows(args.rows)))


if __name__ == "__main__":
    main()
