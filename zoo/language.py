"""Train a language model on State of the Union addresses: one loop for Llama and both Mambas.

Why this file exists: quantization claims need trained language models, since random weights have no
perplexity to lose, and unit tests need ones that load and run in a second. Text, tokenizer, order of
the data and loop are the same for all, so that their perplexities can be compared.

A run is a pure function of the recipe: the batch of a step depends on seed and step alone, so a
stopped run that resumes takes the same steps that an unstopped one would take.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo import corpora, runs, text
from zoo.runs import Progress

if TYPE_CHECKING:  # transformers takes ten seconds to import, so only the functions that need it do
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe:
    """Everything but the model's shape that decides a run; two runs of one recipe agree bit for bit."""

    vocab: int = 2048
    context: int = 256

    steps: int = 3200
    batch: int = 8
    peak_rate: float = 2e-3
    final_rate: float = 0.0
    warmup: int = 150
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    log_every: int = 50
    validate_every: int = 400
    checkpoint_seconds: float = 120.0


Build = Callable[
    [Recipe], "PreTrainedModel"
]  # a freshly initialised model of the recipe's vocabulary


# --- descent ------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays the matrices only: shrinking gains or Mamba's A helps nobody."""
    named = dict(model.named_parameters())
    matrices = {name for name, p in named.items() if p.ndim == 2 and name.endswith("weight")}
    groups = [
        {"params": [named[n] for n in named if n in matrices], "weight_decay": recipe.weight_decay},
        {"params": [named[n] for n in named if n not in matrices], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the rate of a step: linear warm-up, then a cosine from peak to final."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * cosine


def window_loss(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of each next token of windows [n, context + 1]."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor, context: int) -> float:
    """Return exp of the mean loss over whole windows; a rest shorter than a window is dropped."""
    losses = [window_loss(model, some, "none") for some in text.windows(tokens, context)]
    return math.exp(torch.cat(losses).double().mean().item())


def train_step(
    model: nn.Module, optimizer: torch.optim.AdamW, windows: Tensor, step: int, recipe: Recipe
) -> float:
    """Take one step of descent and return the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe)
    loss = window_loss(model, windows)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.item()


# --- the run ------------------------------------------------------------------------------------


def fit(
    build: Build,
    texts: dict[str, str],
    out: Path,
    recipe: Recipe,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train in `out` and return the loss of every step taken; `stop` ends early, as a kill would.

    The schedule follows `recipe.steps` even when `stop` is smaller, so that resuming continues it.
    """
    runs.begin(out, resume)
    tokenizer = tokenizer_of(out, texts["train"], recipe)
    tokens, held = (text.encode(tokenizer, texts[side]) for side in ("train", "validation"))
    torch.manual_seed(recipe.seed)
    model = build(recipe)
    optimizer = build_optimizer(model, recipe)
    progress = Progress()
    if resume:
        progress, _, tensors = runs.load(out, asdict(recipe))
        runs.restore(tensors, model, optimizer)
        runs.rewind_log(out, progress.step)

    losses: list[float] = []
    started = time.monotonic() - progress.seconds
    last_saved = time.monotonic()
    end = recipe.steps if stop is None else stop
    for step in range(progress.step, end):
        windows = text.draw_batch(tokens, step, recipe.batch, recipe.context, recipe.seed)
        losses.append(train_step(model, optimizer, windows, step, recipe))
        done = step + 1
        progress = Progress(done, time.monotonic() - started)
        if done % recipe.log_every == 0 or done == end:
            due = done % recipe.validate_every == 0
            reached = perplexity(model, held, recipe.context) if due else math.nan
            extra = {"validation_perplexity": round(reached, 3)} if due else {}
            runs.write_log(out, progress, losses[-recipe.log_every :], extra)
        if time.monotonic() - last_saved > recipe.checkpoint_seconds or done == end:
            runs.save(out, runs.state(model, optimizer), progress, asdict(recipe))
            last_saved = time.monotonic()
    if end == recipe.steps:
        export(model, out)
    return losses


def tokenizer_of(out: Path, training: str, recipe: Recipe) -> Tokenizer:
    """Return the tokenizer that the run has left in its folder, or make it."""
    path = out / "tokenizer.json"
    if not path.exists():
        text.train_tokenizer(training, recipe.vocab).save(str(path))
    return Tokenizer.from_file(str(path))


def export(model: "PreTrainedModel", out: Path) -> None:
    """Save what `from_pretrained` reads, in fp16: half the size, and these weights fit its range."""
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text.END,
        "eos_token": text.END,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    model.config.use_cache = model.generation_config.use_cache = True
    model.half().save_pretrained(out)


def run(build: Build, recipe: Recipe, options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`, on one thread so that sums keep their order."""
    torch.set_num_threads(1)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    fit(build, corpora.load(options.cache), options.out, recipe, options.resume)
