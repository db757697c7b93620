"""Precision and recall of generated images (Kynkaanniemi et al. 2019, arXiv 1904.06991)."""

from typing import NamedTuple

import torch
from torch import Tensor


class PrecisionRecall(NamedTuple):
    """The part of images that could be references, and the part of references that are covered."""

    precision: float
    recall: float


def precision_recall(features: Tensor, references: Tensor, neighbours: int = 3) -> PrecisionRecall:
    """Of features [n, d] against [k, d]; both rise with their number, so compare at equal n and k.

    A set's manifold is the union of balls around its points that reach their third neighbours.
    """
    own, other = features.double(), references.double()
    return PrecisionRecall(
        _covered(own, other, _reach(other, neighbours)),
        _covered(other, own, _reach(own, neighbours)),
    )


def _reach(points: Tensor, neighbours: int) -> Tensor:
    """Each point's distance [n] to its nearest neighbours' last; itself is the first of all."""
    near = min(neighbours + 1, len(points))
    return torch.cdist(points, points).kthvalue(near, 1).values


def _covered(points: Tensor, centres: Tensor, reach: Tensor) -> float:
    """The part of points inside at least one centre's ball."""
    return float((torch.cdist(points, centres) <= reach).any(1).double().mean())
