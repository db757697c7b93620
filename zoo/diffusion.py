"""Train a model of pictures: one loop for the zoo's U-Nets and its diffusion transformer.

Why this file exists: a quantizer must be shown on a U-Net and on a transformer, and the two are only
comparable if they were trained alike. What is exported is the moving average of the weights.

A run is a pure function of its recipe: the batch of a step depends on seed and step alone, so a run
that was stopped and resumes takes the steps of one that was not. The rate is flat and falls only at
the end, so that a run can be lengthened until the fall begins.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from zoo import runs
from zoo.noising import Batch, Data, Forget, draw, noised, scheduler, seeded
from zoo.runs import Progress

PIPELINE = "pipeline"  # the folder of the model that came out


class Maker(NamedTuple):
    """How a model is made, the pipeline of diffusers that samples with it, and guidance."""

    build: Callable[[], Any]  # a fresh model
    pipeline: Callable[[Any, DDIMScheduler], Any]
    forget: Forget


@dataclass(frozen=True)
class Recipe:
    """Everything but the model that decides a run."""

    steps: int = 4000
    batch: int = 32
    peak_rate: float = 1e-3
    warmup: int = 200
    fall: float = 0.3  # part of the run over which the rate falls to zero
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.998
    wordless: float = 0.1
    seed: int = 0
    low: bool = False  # bf16 autocast

    log_every: int = 50
    validate_every: int = 500
    checkpoint_seconds: float = 300.0


# --- descent ------------------------------------------------------------------------------------


def predict(model: Any, batch: Batch, recipe: Recipe) -> Tensor:
    """The velocity that a U-Net or a transformer of diffusers expects, in fp32."""
    with torch.autocast(batch.noisy.device.type, torch.bfloat16, enabled=recipe.low):
        found: Tensor = model(batch.noisy, timestep=batch.times, return_dict=False, **batch.asked)[
            0
        ]
    return found.float()


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels only: shrinking a norm's gain helps nobody."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.99), fused=True)


def fall_begins(recipe: Recipe) -> int:
    """The step from which on the rate falls."""
    return round(recipe.steps * (1 - recipe.fall))


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of a step: linear warm-up, a flat part, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    begins = fall_begins(recipe)
    progress = max(0, step - begins) / max(1, recipe.steps - begins)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train_step(
    model: nn.Module, optimizer: torch.optim.AdamW, batch: Batch, step: int, recipe: Recipe
) -> float:
    """Take one step of descent and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe)
    loss = mse_loss(predict(model, batch, recipe), batch.velocity)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


Average = dict[str, Tensor]  # the moving average of the weights, by name


@torch.no_grad()
def follow(average: Average, model: nn.Module, step: int, recipe: Recipe) -> None:
    """Move the average towards the weights; early ones are forgotten sooner."""
    keep = min(recipe.average, (1 + step) / (10 + step))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - keep)


@torch.no_grad()
def validation(model: nn.Module, average: Average, held: Data, recipe: Recipe) -> dict[str, float]:
    """The averaged model's loss on held-out pictures, asked for rightly and as others are.

    The difference is what the request tells the model about a picture that it has never seen.
    """
    losses = {}
    caller = Averaged(model, average)
    for name, shift in (("validation", 0), ("other_prompts", 7)):
        asked = {key: x.roll(shift, 0) for key, x in held.asked.items()}
        batch = noised(Data(held.images, asked).rows(slice(256)), seeded(recipe.seed + 2, 0))
        found = [
            mse_loss(predict(caller, part, recipe), part.velocity, reduction="none")
            for part in parts(batch, 64)
        ]
        losses[name] = round(torch.cat(found).mean().item(), 5)
    return losses


def parts(batch: Batch, size: int) -> list[Batch]:
    """A batch in smaller ones."""
    cuts = [slice(i, i + size) for i in range(0, len(batch.times), size)]
    return [
        Batch(
            batch.noisy[cut],
            batch.times[cut],
            {name: x[cut] for name, x in batch.asked.items()},
            batch.velocity[cut],
        )
        for cut in cuts
    ]


class Averaged(NamedTuple):
    """A model called with its averaged weights."""

    model: nn.Module
    average: Average

    def __call__(self, *inputs: Tensor, **named: Any) -> Any:
        return functional_call(self.model, self.average, inputs, named)


# --- the run ------------------------------------------------------------------------------------


def resumed(
    out: Path, model: nn.Module, average: Average, optimizer: torch.optim.AdamW, recipe: Recipe
) -> Progress:
    """Restore weights, average and moments in place and return the progress.

    Another length is no other recipe while the rate has not fallen.
    """
    progress, before, tensors = runs.load(out, asdict(recipe), may_differ=("steps",))
    begins = fall_begins(replace(recipe, steps=before["steps"]))
    if before["steps"] != recipe.steps and progress.step > min(begins, fall_begins(recipe)):
        raise ValueError(
            f"{out / runs.CHECKPOINT} is at step {progress.step} of {before['steps']} and its rate "
            f"has begun to fall; go on with --steps {before['steps']}"
        )
    runs.restore(tensors, model, optimizer)
    for name, value in average.items():
        value.copy_(tensors[f"average/{name}"])
    runs.rewind_log(out, progress.step)
    return progress


def export(maker: Maker, average: Average, out: Path) -> None:
    """Save a pipeline that `from_pretrained` reads: the averaged model in fp16, and the scheduler."""
    model = maker.build()
    model.load_state_dict(average)
    maker.pipeline(model.half(), scheduler()).save_pretrained(out / PIPELINE)


def fit(
    maker: Maker,
    train: Data,
    held: Data,
    out: Path,
    recipe: Recipe,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train in `out` and return the loss of every step taken; `stop` ends early, as a kill would.

    Every checkpoint also leaves a model that loads.
    """
    runs.begin(out, resume)
    torch.manual_seed(recipe.seed)
    model = maker.build().to(train.images.device).train()
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe)
    progress = resumed(out, model, average, optimizer, recipe) if resume else Progress()

    losses: list[float] = []
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    end = recipe.steps if stop is None else stop
    for step in range(progress.step, end):
        batch = draw(train, step, recipe.batch, recipe.seed, recipe.wordless, maker.forget)
        losses.append(train_step(model, optimizer, batch, step, recipe))
        follow(average, model, step, recipe)
        done = step + 1
        progress = Progress(done, time.monotonic() - started)
        if done % recipe.log_every == 0 or done == end:
            due = done % recipe.validate_every == 0 or done == recipe.steps
            extra = validation(model, average, held, recipe) if due else {}
            runs.write_log(out, progress, losses[-recipe.log_every :], extra)
        if time.monotonic() - last_saved > recipe.checkpoint_seconds or done == end:
            tensors = runs.state(model, optimizer)
            tensors |= {f"average/{name}": value for name, value in average.items()}
            runs.save(out, tensors, progress, asdict(recipe))
            export(maker, average, out)
            last_saved = time.monotonic()
    return losses


def run(maker: Maker, recipe: Recipe, data: tuple[Data, Data], options: argparse.Namespace) -> None:
    """Train on pictures and watch held-out ones, with the options of `zoo.train`."""
    one_thread(options.device)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    fit(maker, *data, options.out, recipe, options.resume)


def one_thread(device: str) -> None:
    """Sums that threads share change their order between runs; denormals cost hundreds of cycles."""
    if device == "cpu":
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)
