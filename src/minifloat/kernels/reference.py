"""The readable twin of every fast kernel: decode, then multiply. It accepts every spec."""

import torch
from torch import Tensor

from minifloat.kernels.packed import PackedLinear
from minifloat.qtensor import fake_quantize


def linear(x: Tensor, layer: PackedLinear) -> Tensor:
    """y = Q(x) (w + up down)^T + bias for x [..., in]; quantized again where the output has a spec."""
    spec = layer.spec
    if spec.input is not None:
        x = fake_quantize(x, spec.input)
    w = layer.weight()
    if layer.low_rank is not None:
        up, down = layer.low_rank
        w = w + (up.float() @ down.float()).to(w.dtype)
    y = torch.nn.functional.linear(x, w, layer.bias)
    return y if spec.output is None else fake_quantize(y, spec.output)
