"""How far a quantized model's predictions lie from the full-precision model's."""

from collections.abc import Iterable
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
    with evaluating(reference_model, model):
        for block in batches(tokens, window, window, batch):
            expected = logits_of(reference_model, block.inputs)
            actual = logits_of(model, block.inputs)
            for row, scored in enumerate(block.scored):
                parts = (x[row, -scored:] for x in (expected, actual, block.targets))
                sums.append(_sums(*parts))
    return _scores(sums)


def score_calls(
    reference_model: nn.Module,
    model: nn.Module,
    calls: Iterable[tuple[dict[str, Tensor], Tensor]],
) -> Scores:
    """The same for models that take more than tokens: each call is a window.

    Args:
        calls: arguments with `input_ids` [1, length], and which of these tokens are judged, bool
            [length]; each is judged by what the model says at the token before it.
    """
    sums: list[Tensor] = []
    with evaluating(reference_model, model):
        for arguments, judged in calls:
            expected, actual = (
                m(**arguments, use_cache=False).logits[0, :-1][judged[1:]]
                for m in (reference_model, model)
            )
            sums.append(_sums(expected, actual, arguments["input_ids"][0, 1:][judged[1:]]))
    return _scores(sums)


def _sums(expected: Tensor, actual: Tensor, targets: Tensor) -> Tensor:
    """The count and the four sums of one window, from both models' logits [tokens, vocabulary]."""
    if expected.shape != actual.shape:
        raise UserError(
            "the two models cannot be compared: their vocabularies have "
            f"{expected.shape[-1]} and {actual.shape[-1]} tokens"
        )
    pieces = (torch.split(x, ROWS) for x in (expected, actual, targets))
    total = torch.stack([_rows(*some) for some in zip(*pieces, strict=True)]).sum(0)
    return torch.cat([total.new_tensor([len(targets)]), total])


def _scores(sums: list[Tensor]) -> Scores:
    return Scores(*torch.stack(sums, 1).unbind(0))


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
