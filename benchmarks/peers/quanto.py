"""optimum-quanto: weights alone, decoded in every call, and INT8 by INT8 with one static scale."""

from functools import partial

import torch
from optimum.quanto import Calibration, QTensor, freeze, qfloat8, qint4, qint8, qtype, quantize
from torch import Tensor, nn

from benchmarks.peers.layer import Built, Peer
from minifloat.timing import plain


def build(weights: qtype, activations: qtype | None, w: Tensor, count: int) -> Built:
    def layer() -> nn.Sequential:
        made = nn.Sequential(plain(w))
        quantize(made, weights=weights, activations=activations)
        if activations is not None:
            with Calibration():
                made(torch.randn(256, w.shape[1]))
        freeze(made)
        return made

    layers = [layer() for _ in range(count)]
    return Built([partial(dense, layer) for layer in layers], layers[0][0].weight.dequantize())


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """The product as a plain tensor: with quantized activations the layer may answer codes."""
    y = layer(x)
    return y.dequantize() if isinstance(y, QTensor) else y


PEERS = {
    "quanto int8 x int8": Peer(8, partial(build, qint8, qint8)),
    "quanto int8 x fp32": Peer(8, partial(build, qint8, None)),
    "quanto int4 x fp32": Peer(4, partial(build, qint4, None)),
    "quanto e4m3 x fp32": Peer(8, partial(build, qfloat8, None)),
}
