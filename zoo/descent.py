"""The loop of every training run of the zoo: steps, log lines, checkpoints.

Why this file exists: models differ in their loss and their data, not in how a run goes on, is watched
and survives a kill.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import runs
from zoo.runs import Progress


@dataclass(frozen=True)
class Recipe:
    """What decides any run, besides model and data."""

    steps: int = 1000
    batch: int = 32
    peak_rate: float = 1e-3
    warmup: int = 100
    fall: float = 1.0  # part of the run over which the rate falls to zero; it is flat before
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0

    log_every: int = 50
    validate_every: int = 500
    checkpoint_seconds: float = 120.0


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU for a pair of small numbers."""
    stream, index = numbers
    return torch.Generator().manual_seed(1_000_003 * stream + index)


def places(count: int, step: int, batch: int, seed: int) -> Tensor:
    """Which of `count` examples a step sees; an epoch visits every one once, in random order."""
    epoch, index = divmod(step, count // batch)
    order = torch.randperm(count, generator=seeded(seed, epoch))
    return order[index * batch :][:batch]


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of a step: linear warm-up, a flat part, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    begins = max(recipe.warmup, round(recipe.steps * (1 - recipe.fall)))
    progress = max(0, step - begins) / max(1, recipe.steps - begins)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * progress))


Decays = Callable[[str, Tensor], bool]  # whether a parameter of that name is drawn to zero


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Matrices and kernels are drawn to zero; shrinking a norm's gain helps nobody."""
    return parameter.ndim > 1


def adamw(
    model: nn.Module, recipe: Recipe, slow: float = 0.99, decays: Decays = is_matrix
) -> torch.optim.AdamW:
    """AdamW in two groups; `slow` is the second of its betas."""
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p for name, p in named if decays(name, p) == side],
            "weight_decay": recipe.weight_decay if side else 0.0,
        }
        for side in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, slow), fused=True)


def take_step(
    model: nn.Module, optimizer: torch.optim.AdamW, loss: Tensor, rate: float, clip: float
) -> float:
    """Go down the slope of a loss and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


def resumed(
    out: Path, model: nn.Module, optimizer: torch.optim.AdamW, recipe: Recipe
) -> tuple[Progress, dict[str, Tensor]]:
    """Go back to the last checkpoint of a run, its log with it; return it.

    Another length is no other recipe as long as the rates of all steps so far are the same.
    """
    done, before, tensors = runs.load(out, asdict(recipe), may_differ=("steps",))
    other = replace(recipe, steps=before["steps"])
    if any(learning_rate(n, other) != learning_rate(n, recipe) for n in range(done.step)):
        raise ValueError(
            f"{out / runs.CHECKPOINT} is at step {done.step} of {other.steps} and its rate has begun "
            f"to fall; go on with --steps {other.steps}"
        )
    runs.restore(tensors, model, optimizer)
    runs.rewind_log(out, done.step)
    return done, tensors


def descend(
    out: Path,
    recipe: Recipe,
    done: Progress,
    step: Callable[[int], float],
    watch: Callable[[], dict[str, float]],
    keep: Callable[[Progress], None],
    stop: int | None = None,
) -> list[float]:
    """Take the steps that are left and return the loss of each; `stop` ends early, as a kill would.

    The schedule follows the recipe even when `stop` is smaller, so that resuming continues it.

    Args:
        out: folder of the run; the log lies there.
        done: how far the run has come.
        step: takes the step of that number and returns its loss.
        watch: what else belongs in a log line now and then, such as a loss on held-out data.
        keep: writes a checkpoint.
    """
    losses: list[float] = []
    started = time.monotonic() - done.seconds
    last_kept = time.monotonic()
    end = recipe.steps if stop is None else stop
    for number in range(done.step, end):
        losses.append(step(number))
        done = Progress(number + 1, time.monotonic() - started)
        last = done.step == end
        if done.step % recipe.log_every == 0 or last:
            due = done.step % recipe.validate_every == 0 or done.step == recipe.steps
            runs.write_log(out, done, losses[-recipe.log_every :], watch() if due else {})
        if time.monotonic() - last_kept > recipe.checkpoint_seconds or last:
            keep(done)
            last_kept = time.monotonic()
    return losses


def train(
    out: Path,
    recipe: Recipe,
    model: Any,
    loss: Callable[[int], Tensor],
    watch: Callable[[], dict[str, float]],
    export: Callable[[], None],
    *,
    slow: float = 0.99,
    decays: Decays = is_matrix,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train with a cosine of the rate in a folder that `runs.begin` has made; arguments as above.

    Args:
        loss: of the step of that number.
        export: writes the finished model.
    """
    optimizer = adamw(model, recipe, slow, decays)
    done = resumed(out, model, optimizer, recipe)[0] if resume else Progress()

    def step(number: int) -> float:
        rate = learning_rate(number, recipe)
        return take_step(model, optimizer, loss(number), rate, recipe.clip)

    def keep(done: Progress) -> None:
        runs.save(out, runs.state(model, optimizer), done, asdict(recipe))
        if done.step == recipe.steps:
            export()

    return descend(out, recipe, done, step, watch, keep, stop)
