"""The report's rows on quality: both models' perplexity and their divergence from one pass."""

import math

from torch import Tensor, nn

from minifloat.evaluate.divergence import Scores, divergence_of, score
from minifloat.evaluate.perplexity import perplexity_of


def _row(
    name: str,
    full_precision: float,
    full_precision_error: float | None,
    quantized: float,
    quantized_error: float,
) -> dict[str, str | float | None]:
    """One row; an error that one window cannot give is None, for JSON has no nan."""
    row: dict[str, str | float | None] = {
        "name": name,
        "full_precision": full_precision,
        "full_precision_error": full_precision_error,
        "quantized": quantized,
        "quantized_error": quantized_error,
    }
    for key in ("full_precision_error", "quantized_error"):
        value = row[key]
        if isinstance(value, float) and math.isnan(value):
            row[key] = None
    return row


def compare(
    reference_model: nn.Module,
    model: nn.Module,
    tokens: Tensor,
    *,
    window: int = 512,
    batch: int = 2,
) -> list[dict[str, str | float | None]]:
    """Perplexity of both models, KL divergence and top-1 agreement, one forward pass for each."""
    return rows_of(score(reference_model, model, tokens, window=window, batch=batch))


def rows_of(scores: Scores) -> list[dict[str, str | float | None]]:
    """The rows from the sums of a pass."""
    before = perplexity_of(scores.reference_loss, scores.counts)
    after = perplexity_of(scores.loss, scores.counts)
    apart = divergence_of(scores)
    return [
        _row("perplexity", before.value, before.error, after.value, after.error),
        _row("KL divergence", 0.0, None, apart.kl, apart.kl_error),
        _row("top-1 agreement", 1.0, None, apart.top1, apart.top1_error),
    ]
