"""How different two images look to a network: a distance of its hidden layers in place of pixels."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize


def perceptual(maps: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Distance [n] of images by their maps [n, c, positions] at several depths.

    Channels are scaled to length 1 at each position; the squared difference is averaged over
    positions and depths. It is the distance of Zhang et al. 2018 (arXiv 1801.03924, equation 1) with all
    weights 1, so it ranks images through one network and means nothing across networks.
    """
    layers = [
        (normalize(own.double(), dim=1) - normalize(other.double(), dim=1)).square().sum(1).mean(1)
        for own, other in zip(maps, references, strict=True)
    ]
    return sum(layers[1:], layers[0]) / len(layers)
