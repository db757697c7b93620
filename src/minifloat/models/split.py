"""A layer that is fed by a concatenation, as an exact sum of layers: each part gets its own scale.

The skips of a U-Net and the path that they join differ in range by orders of magnitude, and one scale
for both wastes the codes of the smaller (Q-Diffusion, arXiv 2302.04304, section 3.3).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from minifloat.errors import UserError


class SplitLayer(nn.Module):
    """The sum of layers that each see a span of the input channels; the first holds the bias."""

    def __init__(self, parts: Sequence[nn.Module], sizes: Sequence[int], axis: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes, self.axis = list(sizes), axis

    def forward(self, x: Tensor) -> Tensor:
        spans = torch.split(x, self.sizes, self.axis)
        first, *rest = (part(span) for part, span in zip(self.parts, spans, strict=True))
        out: Tensor = sum(rest, first)
        return out


def split_layer(layer: nn.Module, sizes: Sequence[int]) -> SplitLayer:
    """A `Linear` or `Conv2d` whose input channels are cut into spans of the given sizes."""
    if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) != 1:
        raise UserError(f"a {type(layer).__name__} cannot be split by input channels")
    if sum(sizes) != layer.weight.shape[1]:
        raise UserError(f"spans of {list(sizes)} do not make up {layer.weight.shape[1]} channels")
    weights = torch.split(layer.weight.detach(), list(sizes), 1)
    parts = [_part(layer, w, layer.bias if i == 0 else None) for i, w in enumerate(weights)]
    return SplitLayer(parts, sizes, -1 if isinstance(layer, nn.Linear) else 1)


def split_layers(model: nn.Module, splits: Mapping[str, Sequence[int]]) -> None:
    """Split layers by name, in place."""
    for name, sizes in splits.items():
        model.set_submodule(name, split_layer(model.get_submodule(name), sizes))


def _part(layer: nn.Linear | nn.Conv2d, w: Tensor, bias: Tensor | None) -> nn.Module:
    has_bias = bias is not None
    part: nn.Linear | nn.Conv2d
    with torch.device("meta"):
        if isinstance(layer, nn.Linear):
            part = nn.Linear(w.shape[1], w.shape[0], bias=has_bias)
        else:
            part = nn.Conv2d(
                w.shape[1],
                w.shape[0],
                layer.kernel_size,  # type: ignore[arg-type]  # a tuple of two
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=has_bias,
            )
    part.weight = nn.Parameter(w.clone(), requires_grad=False)
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return part
