"""Perplexity of a language model over a text, with its standard error."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifloat.errors import UserError
from minifloat.models.load import longest

# Rows of logits turned to float32 at once: a vocabulary of 150,000 makes a row 0.6 MB.
ROWS = 128


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of the scored tokens; `error` is one standard error (nan for a single window)."""

    value: float
    error: float
    tokens: int


@dataclass(frozen=True)
class Batch:
    """Windows that go through the model together; row i scores its last `scored[i]` targets."""

    inputs: Tensor
    targets: Tensor
    scored: list[int]


def batches(tokens: Tensor, window: int, stride: int, batch: int) -> Iterator[Batch]:
    """Cut a text into windows of one length in which every token but the first is scored once.

    The last window is moved back to end with the text rather than cut short: all rows then have
    one shape, and its targets only gain context.
    """
    targets = tokens.numel() - 1
    length = min(window, targets)
    ends = [*range(length, targets, stride), targets]
    scored = [length, *(end - before for before, end in pairwise(ends))]
    for first in range(0, len(ends), batch):
        rows = [tokens[end - length : end + 1] for end in ends[first : first + batch]]
        block = torch.stack(rows).long()
        yield Batch(block[:, :-1], block[:, 1:], scored[first : first + batch])


def check(model: nn.Module, tokens: Tensor, window: int, stride: int, batch: int) -> None:
    """Refuse what would otherwise end in an index error or in a number without a meaning."""
    if tokens.dim() != 1 or tokens.numel() < 2:
        raise UserError("evaluation needs one sequence of at least 2 tokens")
    if window < 1 or batch < 1:
        raise UserError(f"window ({window}) and batch ({batch}) must be at least 1")
    if not 1 <= stride <= window:
        raise UserError(f"the stride must lie between 1 and the window ({window}), not {stride}")
    limit = longest(model)
    if limit is not None and min(window, tokens.numel() - 1) > limit:
        raise UserError(f"the model reads at most {limit} tokens at once, not a window of {window}")


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Inference without dropout; every module gets its own training flag back afterwards."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    with ExitStack() as stack:
        for module, flag in flags:
            stack.callback(setattr, module, "training", flag)
        for model in models:
            model.eval()
        stack.enter_context(torch.inference_mode())
        yield


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits in the model's own precision: only a few rows at a time are widened to float32."""
    device = next(p for p in model.parameters() if not p.is_meta).device  # some come block by block
    logits: Tensor = model(input_ids=inputs.to(device), use_cache=False).logits
    return logits


def mean_and_error(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Mean per token and its standard error, from the sums and token counts of the windows.

    Tokens of one window depend on each other, so the window is the sample: this is the ratio
    estimator, which allows for windows that score fewer tokens than others.
    """
    total, windows = counts.sum(), len(counts)
    mean = sums.sum() / total
    if windows < 2:
        return float(mean), math.nan
    spread = (sums - mean * counts).square().sum() * windows / (windows - 1)
    return float(mean), float(spread.sqrt() / total)


def perplexity_of(sums: Tensor, counts: Tensor) -> Perplexity:
    """Perplexity from the windows' sums of negative log-likelihoods (d exp(x) = exp(x) dx)."""
    mean, error = mean_and_error(sums, counts)
    # math.exp would raise on a model broken so badly that the answer is infinite.
    value = float(torch.tensor(mean, dtype=torch.float64).exp())
    return Perplexity(value, value * error, int(counts.sum()))


def perplexity(
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int = 512,
    stride: int | None = None,
    batch: int = 4,
) -> Perplexity:
    """Perplexity of `tokens`, read in windows of `window` tokens that advance by `stride`.

    After the first window only the last `stride` targets count, so a smaller stride gives every
    target at least `window - stride` tokens of context; the default, `window`, costs least.
    """
    stride = window if stride is None else stride
    check(model, tokens, window, stride, batch)
    sums: list[float] = []
    counts: list[int] = []
    with evaluating(model):
        for block in batches(tokens, window, stride, batch):
            logits = logits_of(model, block.inputs)
            for row, targets, scored in zip(logits, block.targets, block.scored, strict=True):
                pairs = zip(
                    row[-scored:].split(ROWS),
                    targets[-scored:].to(row.device).split(ROWS),
                    strict=True,
                )
                sums.append(
                    sum(
                        float(functional.cross_entropy(some.float(), goal, reduction="sum"))
                        for some, goal in pairs
                    )
                )
                counts.append(scored)
    return perplexity_of(
        torch.tensor(sums, dtype=torch.float64), torch.tensor(counts, dtype=torch.float64)
    )
