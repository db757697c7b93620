"""The readable twin of every fast kernel: decode, then multiply. It accepts every spec."""

from typing import Protocol

import torch
from torch import Tensor

from minifloat.kernels.packed import PackedLinear
from minifloat.kernels.states import States


class Geometry(Protocol):
    """What a convolution needs beside its weight; as in `torch.nn.Conv2d`."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def linear(x: Tensor, layer: PackedLinear) -> Tensor:
    """y = Q(x) (w + up down)^T + bias for x [..., in]."""
    return torch.nn.functional.linear(
        layer.quantized_input(x), layer.weight_and_branch(), layer.bias
    )


def conv2d(x: Tensor, layer: PackedLinear, geometry: Geometry) -> Tensor:
    """The same for x [batch, channels, height, width], seen as pixels by channels."""
    if layer.spec.input is not None and layer.spec.input.tile == (-1, -1):
        x = layer.quantized_input(x)  # one scale for all: the order of the axes is all the same
    elif layer.spec.input is not None:
        x = layer.quantized_input(x.movedim(1, -1)).movedim(-1, 1)
    w = layer.weight_and_branch()
    w = w.reshape(w.shape[0], -1, *geometry.kernel_size)
    return torch.nn.functional.conv2d(
        x, w, layer.bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )


def put_states(x: Tensor, room: States, first: int | Tensor) -> None:
    """Keys or values [batch, heads, tokens, width] as codes, in the place of some from the first on.

    Raises:
        UserError: NaN or Inf among them.
    """
    room.write(first, States.of(x, room.spec))


def attention_kv(
    query: Tensor, keys: States, values: States, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention over keys and values in few bits: decoded to the dtype of the queries, then attended.

    Args:
        query: [batch, heads, queries, width]; heads are a multiple of those of keys and values.
        keys, values: of so many tokens.
        mask: bool [batch, tokens], or None; a token is seen where it is true.
        scaling: of the products.

    Returns:
        [batch, heads, queries, width of the values]; every query sees the same tokens.
    """
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        keys.decoded(query.dtype),
        values.decoded(query.dtype),
        attn_mask=None if mask is None else mask[:, None, None, :],
        scale=scaling,
        enable_gqa=True,
    )


def embedding(ids: Tensor, layer: PackedLinear) -> Tensor:
    """Rows [..., in] of the weight [out, in] at ids [...]: only these are decoded."""
    if layer.held is not None:
        return torch.nn.functional.embedding(ids, layer.held)
    return layer.rows(ids.reshape(-1)).reshape(*ids.shape, layer.shape[1])
