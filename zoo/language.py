"""Train a language model on State of the Union addresses: one loop for every architecture.

Why this file exists: quantization claims need trained language models, since random weights have no
perplexity to lose, and unit tests need ones that load and run in a second. Text, tokenizer, order of
the data and loop are the same for all, so that their perplexities can be compared.

A run is a pure function of the recipe: the batch of a step depends on seed and step alone, so a
stopped run that resumes takes the same steps that an unstopped one would take.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo import corpora, descent, runs, text

if TYPE_CHECKING:  # transformers takes ten seconds to import, so only the functions that need it do
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Recipe(descent.Recipe):
    """Everything but the model's shape that decides a run; two runs of one recipe agree bit for bit."""

    vocab: int = 2048
    context: int = 256

    steps: int = 3200
    batch: int = 8
    peak_rate: float = 2e-3
    warmup: int = 150
    weight_decay: float = 0.1
    validate_every: int = 400


# Makes a freshly initialised model of the recipe's vocabulary.
Build = Callable[[Recipe], "PreTrainedModel"]


# --- loss ---------------------------------------------------------------------------------------


def is_plain(name: str, parameter: Tensor) -> bool:
    """Layers and embeddings are drawn to zero; Mamba's A, and its convolutions of one channel, not."""
    return parameter.ndim == 2 and name.endswith("weight")


def window_loss(model: nn.Module, windows: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of each next token of windows [n, context + 1]."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)


@torch.inference_mode()
def perplexity(model: nn.Module, tokens: Tensor, context: int) -> float:
    """Return exp of the mean loss over whole windows; a rest shorter than a window is dropped."""
    losses = [window_loss(model, some, "none") for some in text.windows(tokens, context)]
    return math.exp(torch.cat(losses).double().mean().item())


# --- the run ------------------------------------------------------------------------------------


def fit(
    build: Build,
    texts: dict[str, str],
    out: Path,
    recipe: Recipe,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train in `out` and return the loss of every step taken; `stop` ends early, as a kill would."""
    runs.begin(out, resume)
    tokenizer = tokenizer_of(out, texts["train"], recipe)
    tokens, held = (text.encode(tokenizer, texts[side]) for side in ("train", "validation"))
    torch.manual_seed(recipe.seed)
    model = build(recipe)

    def loss(step: int) -> Tensor:
        windows = text.draw_batch(tokens, step, recipe.batch, recipe.context, recipe.seed)
        return window_loss(model, windows)

    return descent.train(
        out,
        recipe,
        model,
        loss,
        watch=lambda: {"validation_perplexity": round(perplexity(model, held, recipe.context), 3)},
        export=lambda: export(model, out),
        slow=0.95,
        decays=is_plain,
        resume=resume,
        stop=stop,
    )


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
