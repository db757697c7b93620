"""The Frechet distance of two sets of images through a feature network, and what quantization adds.

The distance (Heusel et al. 2017, arXiv 1706.08500, equation 6) is that of two Gaussians fitted to
features. Estimated from n images it lies too high, the more so the fewer they are, so two distances
may be compared only at one n; and a difference of a quantized and a full-precision model's images of the
same prompts and noise is resampled in pairs, since both share most of their chance.
"""

import torch
from torch import Tensor

from minifloat.evaluate.bootstrap import RESAMPLES, Interval, bootstrap


def frechet(features: Tensor, references: Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features [n, d] and [k, d].

    Means little with n or k below d: a covariance of so few has directions without any spread.
    """
    (mean1, spread1), (mean2, spread2) = _moments(features), _moments(references)
    values, vectors = torch.linalg.eigh(spread1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ spread2 @ root).clamp(min=0).sqrt().sum()
    shift = (mean1 - mean2).square().sum()
    return float(shift + spread1.trace() + spread2.trace() - 2 * cross)


def frechet_change(
    features: Tensor,
    before: Tensor,
    references: Tensor,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """How much farther from `references` features [n, d] lie than `before`, row by row their pairs.

    An interval that covers zero says that these images cannot tell the two models apart.
    """

    def change(rows: Tensor) -> float:
        return frechet(features[rows], references) - frechet(before[rows], references)

    return bootstrap(change, len(features), resamples=resamples, seed=seed)


def spatial(maps: Tensor, channels: int = 8) -> Tensor:
    """Features [n, d] that know where things are: first channels of maps [n, c, positions], laid out.

    Their Frechet distance is the spatial one of Nash et al. 2021 (arXiv 2103.03841), through another
    network; it sees a picture torn apart, which pooled features do not.
    """
    return maps[:, :channels].flatten(1)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] of rows, in float64."""
    rows = features.double()
    return rows.mean(0), rows.T.cov()
