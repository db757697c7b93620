"""The readable twin of every fast kernel: decode, then multiply. It accepts every spec."""

import torch
from torch import Tensor

from minifloat.packing import unpack
from minifloat.qtensor import QTensor, decode, fake_quantize
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec


def weight(
    packed: Tensor, scale: Scale, spec: QuantSpec, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The decoded weight [out, in] of packed codes."""
    codes = unpack(packed, spec.format.bits, shape[1])
    return decode(QTensor(codes, scale, spec, shape), dtype)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    spec: LayerSpec,
    input_scale: Scale | None = None,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """y = Q(x) (w + up down)^T + bias for x [..., in] and a decoded weight [out, in]."""
    if spec.input is not None:
        x = fake_quantize(x, spec.input, input_scale)
    if low_rank is not None:
        up, down = low_rank
        w = w + (up.float() @ down.float()).to(w.dtype)
    y = torch.nn.functional.linear(x, w, bias)
    return y if spec.output is None else fake_quantize(y, spec.output)
