"""Train a model of pictures: one loop for the zoo's U-Nets and its diffusion transformer.

Why this file exists: a quantizer must be shown on a U-Net and on a transformer, and the two are only
comparable if they were trained alike. What is exported is the moving average of the weights.

A run is a pure function of its recipe: the batch of a step depends on seed and step alone, so a run
that was stopped and resumes takes the steps of one that was not. The rate is flat and falls only at
the end, so that a run can be lengthened until the fall begins.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from zoo import descent, runs
from zoo.descent import seeded
from zoo.noising import Batch, Data, Forget, Noised, draw, noised, scheduler
from zoo.runs import Progress

PIPELINE = "pipeline"  # the folder of the model that came out


class Maker(NamedTuple):
    """How a model is made, the pipeline of diffusers that samples with it, guidance, and noise."""

    build: Callable[[], Any]  # a model to begin with
    pipeline: Callable[[Any, DDIMScheduler], Any]
    forget: Forget
    noised: Noised = noised


@dataclass(frozen=True)
class Recipe(descent.Recipe):
    """Everything but the model that decides a run."""

    steps: int = 4000
    warmup: int = 200
    fall: float = 0.3
    average: float = 0.998
    wordless: float = 0.1
    low: bool = False  # bf16 autocast
    checkpoint_seconds: float = 300.0


# --- descent ------------------------------------------------------------------------------------


def predict(model: Any, batch: Batch, recipe: Recipe) -> Tensor:
    """The velocity that a U-Net or a transformer of diffusers expects, in fp32."""
    with torch.autocast(batch.noisy.device.type, torch.bfloat16, enabled=recipe.low):
        found = model(batch.noisy, timestep=batch.times, return_dict=False, **batch.asked)
    velocity: Tensor = found[0][:, : batch.noisy.shape[1]]  # a variance may lie behind
    return velocity.float()


Average = dict[str, Tensor]  # the moving average of the weights, by name


@torch.no_grad()
def follow(average: Average, model: nn.Module, step: int, recipe: Recipe) -> None:
    """Move the average towards the weights; early ones are forgotten sooner."""
    keep = min(recipe.average, (1 + step) / (10 + step))
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1 - keep)


@torch.no_grad()
def validation(
    model: nn.Module, average: Average, held: Data, recipe: Recipe, noise: Noised
) -> dict[str, float]:
    """The averaged model's loss on held-out pictures, asked for rightly and as others are.

    The difference is what the request tells the model about a picture that it has never seen.
    """
    losses = {}
    caller = Averaged(model, average)
    for name, shift in (("validation", 0), ("other_prompts", 7)):
        asked = {key: x.roll(shift, 0) for key, x in held.asked.items()}
        batch = noise(Data(held.images, asked).rows(slice(256)), seeded(recipe.seed + 2, 0))
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
    optimizer = descent.adamw(model, recipe)
    done = Progress()
    if resume:
        done, tensors = descent.resumed(out, model, optimizer, recipe)
        average = {name: tensors[f"average/{name}"].to(p.device) for name, p in average.items()}

    def step(number: int) -> float:
        own = recipe.seed, recipe.wordless, maker.forget, maker.noised
        batch = draw(train, number, recipe.batch, *own)
        loss = mse_loss(predict(model, batch, recipe), batch.velocity)
        rate = descent.learning_rate(number, recipe)
        found = descent.take_step(model, optimizer, loss, rate, recipe.clip)
        follow(average, model, number, recipe)
        return found

    def watch() -> dict[str, float]:
        return validation(model, average, held, recipe, maker.noised)

    def keep(done: Progress) -> None:
        tensors = runs.state(model, optimizer)
        tensors |= {f"average/{name}": value for name, value in average.items()}
        runs.save(out, tensors, done, asdict(recipe))
        export(maker, average, out)

    return descent.descend(out, recipe, done, step, watch, keep, stop)


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
