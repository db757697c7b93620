"""Layers that read one input, such as an attention's query, key and value: multiplied as one.

The rows of siblings are laid behind each other, and each layer's own tensors become views of them, so
nothing is stored twice. The first layer's call multiplies all; the others hand out their part. For one
token that saves a call, a rounding of the input and a start of the threads for each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minifloat.arena import Arena
from minifloat.layers import Join, QLayer, QLinear
from minifloat.scales import Scale

# Names under one parent, in the order of their calls. A guess: layers that turn out to read
# different inputs are parted at their first run.
_NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("to_q", "to_k", "to_v"),
    ("to_k", "to_v"),
)
# Bytes of codes from which on they are laid on huge pages; caches hold fewer.
_LARGE = 4 << 20


def make_ready(model: nn.Module) -> None:
    """Lay out a packed model's layers as the kernels like them best, in place, before it runs.

    Outputs stay the same, and so does what is saved.
    """
    layers = [module for module in model.modules() if isinstance(module, QLayer)]
    for layer in layers:
        layer.interleave()
    large = sum(layer.weight.nbytes for layer in layers if layer.weight.is_cpu) >= _LARGE
    join = Arena().joined if large else torch.cat
    for parent in model.modules():
        for names in _NAMES:
            children = [getattr(parent, name, None) for name in names]
            if _alike(children):
                Siblings(children, join)  # type: ignore[arg-type]
    for layer in layers if large else []:
        layer.settle(join)


def _alike(layers: Sequence[object]) -> bool:
    """Whether these are layers whose rows can lie behind each other."""
    first = layers[0]
    return isinstance(first, QLinear) and all(
        isinstance(layer, QLinear)
        and layer.interleaved
        and layer.siblings is None
        and layer.spec == first.spec
        and layer.in_features == first.in_features
        and layer.dtype == first.dtype
        and layer.weight_scale.shape[0] == layer.out_features
        and "weight_outer_scale" not in layer._buffers
        and not layer.rank
        and (layer.bias is None) == (first.bias is None)
        and _same(layer._buffers.get("input_scale"), first._buffers.get("input_scale"))
        and _same(layer._buffers.get("input_zero_point"), first._buffers.get("input_zero_point"))
        for layer in layers
    )


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


class Siblings:
    """Some interleaved layers as one; made, it takes their calls until they are parted."""

    def __init__(self, layers: Sequence[QLinear], join: Join) -> None:
        self.layers = tuple(layers)
        self.sizes = [layer.out_features for layer in layers]
        self._pending: tuple[Tensor, tuple[Tensor, ...]] | None = None
        first = layers[0].packed()
        stored = {name: self._joined(name, join) for name in ("weight", "weight_scale")}
        zero = None if first.scale.zero is None else self._joined("weight_zero_point", join)
        self._whole = first._replace(
            codes=stored["weight"],
            scale=Scale(stored["weight_scale"], None, zero),
            shape=(sum(self.sizes), layers[0].in_features),
            bias=None if first.bias is None else torch.cat([_bias(layer) for layer in layers]),
        )
        for place, layer in enumerate(layers):
            layer.siblings, layer.place = self, place

    def _joined(self, name: str, join: Join) -> Tensor:
        """The layers' tensors behind each other; theirs become views of it."""
        whole = join([layer.get_buffer(name) for layer in self.layers])
        for layer, part in zip(self.layers, torch.split(whole, self.sizes), strict=True):
            layer._buffers[name], layer.settled = part, True
        return whole

    def output(self, layer: QLinear, x: Tensor) -> Tensor | None:
        """What a layer makes of x; None if the first was given something else, or the layers were moved
        without their knowledge: then all are parted."""
        if layer.place == 0 and x.device == self._whole.codes.device:
            y: Tensor = layer.kernel(x.device.type).run(x, self._whole)
            self._pending = (x, torch.split(y, self.sizes, -1))
        pending = self._pending
        if pending is None or pending[0] is not x:
            self.part()
            return None
        if layer.place == len(self.sizes) - 1:
            self._pending = None
        return pending[1][layer.place]

    def part(self) -> None:
        """Let every layer multiply alone from now on."""
        self._pending = None
        for layer in self.layers:
            layer.siblings = None


def _bias(layer: QLinear) -> Tensor:
    assert layer.bias is not None
    return layer.bias.detach()
