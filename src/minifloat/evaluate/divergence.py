"""How far a quantized model's predictions lie from the full-precision model's."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.evaluate.perplexity import (
    ROWS,
    batches,
    check,
    evaluating,
    logits_of,
    mean_and_error,
)


@dataclass(frozen=True)
class Divergence:
    """Mean KL(reference || model) in nats per token and how often both predict the same token.

    Errors are one standard error over windows (nan for a single window).
    """

    kl: float
    kl_error: float
    top1: float
    top1_error: float
    tokens: int


@dataclass(frozen=True)
class Scores:
    """Sums over each window's tokens, float64 [windows]: all that any comparison needs."""

    counts: Tensor
    reference_loss: Tensor
    loss: Tensor
    kl: Tensor
    top1: Tensor


def _rows(reference: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    """The four sums of `Scores` over some rows of logits, in float32 and added in float64."""
    expected = reference.float().log_softmax(-1)
    actual = other.to(reference.device).float().log_softmax(-1)
    chosen = targets.to(reference.device).unsqueeze(-1)
    weight = expected.exp()
    # A token the reference excludes (log 0) contributes nothing, whatever the model says of it.
    kl = torch.where(weight > 0, weight * (expected - actual), 0.0).sum(-1)
    same = expected.argmax(-1) == actual.argmax(-1)
    columns = (-expected.gather(-1, chosen), -actual.gather(-1, chosen), kl, same)
    return torch.stack([column.double().sum() for column in columns]).cpu()


def score(
    reference_model: nn.Module, model: nn.Module, tokens: Tensor, *, window: int, batch: int
) -> Scores:
    """Run each model once over the text and sum losses, KL and agreement for every window."""
    check(reference_model, tokens, window, window, batch)
    check(model, tokens, window, window, batch)
    sums: list[Tensor] = []
    counts: list[int] = []
    with evaluating(reference_model, model):
        for block in batches(tokens, window, window, batch):
            expected = logits_of(reference_model, block.inputs)
            actual = logits_of(model, block.inputs)
            if expected.shape != actual.shape:
                raise UserError(
                    "the two models cannot be compared: their vocabularies have "
                    f"{expected.shape[-1]} and {actual.shape[-1]} tokens"
                )
            for row, scored in enumerate(block.scored):
                parts = (
                    torch.split(part[row, -scored:], ROWS)
                    for part in (expected, actual, block.targets)
                )
                sums.append(torch.stack([_rows(*some) for some in zip(*parts, strict=True)]).sum(0))
                counts.append(scored)
    table = torch.stack(sums, 1)
    return Scores(torch.tensor(counts, dtype=torch.float64), *table.unbind(0))


def divergence_of(scores: Scores) -> Divergence:
    """The means and standard errors of a pass that has already been made."""
    kl, kl_error = mean_and_error(scores.kl, scores.counts)
    top1, top1_error = mean_and_error(scores.top1, scores.counts)
    return Divergence(kl, kl_error, top1, top1_error, int(scores.counts.sum()))


def divergence(
    reference_model: nn.Module,
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int = 512,
    batch: int = 2,
) -> Divergence:
    """KL(reference || model) and top-1 agreement over the text.

    It sees damage that perplexity hides: losses on single tokens cancel, divergences do not.
    """
    return divergence_of(score(reference_model, model, tokens, window=window, batch=batch))
