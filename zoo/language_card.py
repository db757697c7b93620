"""What the card of a language model of the zoo states: perplexities, outliers, a sample.

Why this file exists: every number in the cards comes out of one command. A perplexity says little
alone, so it stands beside those of counting words: the best that can be done without looking back,
and with one token in view.

    python -m zoo.language_card zoo/llama-tiny
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from zoo import corpora, text
from zoo.language import perplexity
from zoo.peaks import Peaks, peaks
from zoo.scan import fast_scan

CONTEXT = 256
HELD_OUT = ("validation", "heldout", "moby_dick")
DISCOUNT = 0.75  # of every count of a pair, given to the pairs that were never seen


# --- counting -----------------------------------------------------------------------------------


def unigram_perplexity(train: Tensor, held: Tensor, vocab: int) -> float:
    """Perplexity of the frequencies of tokens, each counted once more than it was seen."""
    counts = train.bincount(minlength=vocab).double() + 1
    return math.exp(-(counts / counts.sum()).log()[held[1:]].mean().item())


def bigram_perplexity(train: Tensor, held: Tensor, vocab: int) -> float:
    """Perplexity of the frequencies of pairs, discounted and filled up with those of tokens.

    Absolute discounting (Ney, Essen and Kneser 1994) with interpolation.
    """
    pairs = (vocab * train[:-1] + train[1:]).bincount(minlength=vocab**2).view(vocab, vocab)
    total, kinds = pairs.sum(1).clamp(min=1), (pairs > 0).sum(1)
    tokens = train.bincount(minlength=vocab).double() + 1
    before, after = held[:-1], held[1:]
    seen = (pairs[before, after] - DISCOUNT).clamp(min=0) / total[before]
    rest = torch.where(kinds > 0, DISCOUNT * kinds / total, 1.0)[before]
    chances = seen + rest * (tokens / tokens.sum())[after]
    return math.exp(-chances.log().mean().item())


def print_perplexities(model: nn.Module, tokenizer: Tokenizer, texts: dict[str, str]) -> None:
    """Print a Markdown table of the model and of counting, over every held-out text."""
    train, vocab = text.encode(tokenizer, texts["train"]), tokenizer.get_vocab_size()
    print(
        "| text | tokens | perplexity | bits a byte | bigrams | unigrams |\n|---|---|---|---|---|---|"
    )
    for name in HELD_OUT:
        held = text.encode(tokenizer, texts[name])
        own = perplexity(model, held, CONTEXT)
        bits = math.log2(own) * len(held) / len(texts[name].encode())
        two, one = (f(train, held, vocab) for f in (bigram_perplexity, unigram_perplexity))
        print(f"| {name} | {len(held):,} | {own:.3f} | {bits:.3f} | {two:.1f} | {one:.1f} |")


# --- outliers -----------------------------------------------------------------------------------


def role(name: str) -> str:
    """What a tensor does, for the rows of the tables: the end of its name."""
    return name.removesuffix(".weight").split(".")[-1]


@contextmanager
def watched_convolutions(model: Any, seen: dict[str, Tensor]) -> Iterator[None]:
    """Keep what Mamba-2's convolutions give: x, and B and C by group. They are no calls of layers."""
    module = sys.modules[type(model).__module__]
    config, convolve = model.config, module.causal_conv1d_fn
    parts = {"x": config.num_heads * config.head_dim}
    for name in "BC":
        parts |= {f"{name} of group {g}": config.state_size for g in range(config.n_groups)}
    blocks = itertools.count()

    def keep(*inputs: Any, **named: Any) -> Tensor:
        found: Tensor = convolve(*inputs, **named)
        block, pieces = next(blocks), found.split(list(parts.values()), 1)
        for name, piece in zip(parts, pieces, strict=True):
            seen[f"{block}.{name}"] = piece.transpose(1, 2).flatten(0, 1)
        return found

    with mock.patch.object(module, "causal_conv1d_fn", keep):
        yield


def record_inputs(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """Return the input [tokens, channels] of each Linear and norm; before a norm that is the stream."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, inputs: seen.update({name: inputs[0].flatten(0, 1)})

    watched = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or role(name).endswith(("norm", "norm_f"))
    ]
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in watched]
    grouped = hasattr(getattr(model, "config", None), "n_groups")
    with torch.inference_mode(), watched_convolutions(model, seen) if grouped else nullcontext():
        model(input_ids=windows, use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def print_peaks(title: str, matrices: dict[str, Tensor]) -> None:
    """Print the worst figures over the blocks for each role, as a Markdown table."""
    roles: dict[str, list[Peaks]] = {}
    for name, matrix in matrices.items():
        roles.setdefault(role(name), []).append(peaks(matrix))
    print(f"\n| {title} | " + " | ".join(f.replace("_", " ") for f in Peaks._fields) + " |")
    print("|---" * (1 + len(Peaks._fields)) + "|")
    for name, found in roles.items():
        worst = (max(column) for column in zip(*found, strict=True))
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in worst) + " |")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the matrices by name; a convolution of each channel by itself has a row a channel."""
    found = {n: p.detach() for n, p in model.named_parameters() if n.endswith("weight")}
    return {name: p.flatten(1) for name, p in found.items() if p.ndim > 1}


# --- the card -----------------------------------------------------------------------------------


def sample(model: Any, tokenizer: Tokenizer, prompt: str, length: int) -> str:
    """Continue a prompt by sampling from the 40 likeliest tokens, seed 0."""
    torch.manual_seed(0)
    start = torch.tensor([tokenizer.encode(prompt).ids])
    tokens = model.generate(start, do_sample=True, top_k=40, max_new_tokens=length, pad_token_id=0)
    return tokenizer.decode(tokens[0].tolist())


def main() -> None:
    """Print what the card of a finished model states."""
    parser = argparse.ArgumentParser(prog="python -m zoo.language_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of config.json and model.safetensors")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE, help="corpora folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    texts = corpora.load(options.cache)
    with fast_scan():
        print_perplexities(model, tokenizer, texts)
        windows = text.encode(tokenizer, texts["heldout"])[: 8 * CONTEXT].view(8, CONTEXT)
        print_peaks("weight", weights(model))
        print_peaks("input of", record_inputs(model, windows))
    print("\n" + sample(model, tokenizer, "My fellow Americans, the state of our Union", 120))


if __name__ == "__main__":
    main()
