"""GGUF's blocks of 32 weights, where they hold a grid of ours exactly: Q8_0, Q4_0, Q4_1 and MXFP4.

Source: the `gguf` package 0.19 (`quants.py`) and llama.cpp's ggml-common.h. A block is its scale, then
its codes. Four-bit codes of columns 0 to 15 are the low nibbles, those of 16 to 31 the high ones:

    Q8_0   fp16 d, int8 q         d * q
    Q4_0   fp16 d, q              d * (q - 8)
    Q4_1   fp16 d, fp16 m, q      d * q + m
    MXFP4  E8M0 e, E2M1 codes     2^(e - 127) * value

Larger groups repeat their scale. E1M2, which is the symmetric integers in halves, goes out as Q4_0 with
half the scale. Nothing is rounded: what does not fit is refused.
"""

import torch
from torch import Tensor

from minifloat.export.contract import Layer, Refusal, Shape, flip_sign, weight_of
from minifloat.formats import E1M2, E2M1, E8M0, FP16, INT4, INT8, UINT4
from minifloat.spec import LayerSpec

BLOCK = 32
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "MXFP4": 17}
_KINDS = {INT8: "Q8_0", INT4: "Q4_0", E1M2: "Q4_0", UINT4: "Q4_1"}


def kind_of(spec: LayerSpec, shape: Shape) -> str:
    """The type of the blocks that hold such a layer.

    Raises:
        Refusal: there is none.
    """
    weight = weight_of(spec)
    rows, columns = weight.tile
    if spec.input is not None:
        raise Refusal(
            f"it says nothing of inputs ({spec.input}); add --weights-only to leave them out"
        )
    if rows != 1 or (columns != -1 and columns % BLOCK):
        raise Refusal(f"a scale covers a row or groups of a multiple of 32, not {weight.tile}")
    if shape[1] % (BLOCK if columns == -1 else columns):
        raise Refusal(f"{shape[1]} columns do not fill its blocks")
    if weight.format == E2M1 and weight.scale == E8M0:
        return "MXFP4"
    known = weight.format in _KINDS and (weight.format.signed or weight.zero_point)
    if not known or weight.scale != FP16:
        raise Refusal(f"no block holds {weight}: int8, int4, e1m2 and uint4 have fp16 scales")
    return _KINDS[weight.format]


def blocks(layer: Layer, kind: str) -> Tensor:
    """The bytes [N, K / 32 * bytes of a block] of a layer.

    Raises:
        Refusal: a scale or an offset has no fp16 number.
    """
    q, fmt = layer.q, layer.q.spec.format
    rows, columns = q.codes.shape
    scale = _each(q.scale.stored, columns)
    if kind == "MXFP4":
        head = scale[:, :, None]
        return _join(head, _nibbles(q.codes))
    if fmt == E1M2:
        scale = _exact(scale.float() / 2)
        magnitude = (q.codes & 7).to(torch.int8)
        codes = (torch.where(q.codes > 7, -magnitude, magnitude) + 8).to(torch.uint8)
    else:
        codes = flip_sign(q.codes, 4) if fmt == INT4 else q.codes
    head = _halves(scale)
    if kind == "Q4_1":
        assert q.scale.zero is not None
        offset = -scale.float() * _each(q.scale.zero, columns).float()
        head = torch.cat((head, _halves(_exact(offset))), dim=2)
    if kind == "Q8_0":
        return _join(head, codes.reshape(rows, -1, BLOCK))
    return _join(head, _nibbles(codes))


def _each(values: Tensor, columns: int) -> Tensor:
    """One value a tile to one a block."""
    return values.repeat_interleave(columns // BLOCK // values.shape[1], dim=1)


def _exact(values: Tensor) -> Tensor:
    halves = values.half()
    if not torch.equal(halves.float(), values):
        raise Refusal("an offset or half a scale has no fp16 number; use symmetric int4")
    return halves


def _halves(values: Tensor) -> Tensor:
    """fp16 [N, B] as bytes [N, B, 2]."""
    return values.contiguous().view(torch.uint8).reshape(*values.shape, 2)


def _nibbles(codes: Tensor) -> Tensor:
    """Codes [N, K] as bytes [N, B, 16]."""
    parts = codes.reshape(codes.shape[0], -1, 2, BLOCK // 2)
    return parts[:, :, 0] | (parts[:, :, 1] << 4)


def _join(head: Tensor, body: Tensor) -> Tensor:
    return torch.cat((head, body), dim=2).reshape(head.shape[0], -1)
