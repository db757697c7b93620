"""GGUF's blocks of 32 weights, where they hold a grid of ours exactly: Q8_0, Q4_0, Q4_1 and MXFP4.

Source: the `gguf` package 0.19 (`quants.py`) and llama.cpp's ggml-common.h. A block is its scale, then
its codes. Four-bit codes of columns 0 to 15 are the low nibbles, those of 16 to 31 the high ones:

    Q8_0   fp16 d, int8 q         d * q
    Q4_0   fp16 d, q              d * (q - 8)
    Q4_1   fp16 d, fp16 m, q      d * q + m
    MXFP4  E8M0 e, E2M1 codes     2^(e - 127) * value

Larger groups repeat their scale. E1M2, which is the symmetric integers in halves, goes out as Q4_0 with
half the scale. Nothing is rounded: what does not fit is refused. So is a Q4_1 block of another tool
whose m is no multiple of d, because a zero point of ours is a code.
"""

from typing import Any

import torch
from torch import Tensor

from minifloat.export.contract import (
    Contract,
    Layer,
    Refusal,
    Scheme,
    Shape,
    flip_sign,
    weight_of,
)
from minifloat.formats import E1M2, E2M1, E8M0, FP16, INT4, INT8, UINT4
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import MXFP4, LayerSpec, QuantSpec

BLOCK = 32
BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "MXFP4": 17}
_KINDS = {INT8: "Q8_0", INT4: "Q4_0", E1M2: "Q4_0", UINT4: "Q4_1"}
_SPECS = {
    "Q8_0": QuantSpec(INT8, (1, BLOCK), FP16),
    "Q4_0": QuantSpec(INT4, (1, BLOCK), FP16),
    "Q4_1": QuantSpec(UINT4, (1, BLOCK), FP16, zero_point=True),
    "MXFP4": MXFP4,
}


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """The type of the blocks that hold such a layer."""
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
        return {"type": "MXFP4"}
    known = weight.format in _KINDS and (weight.format.signed or weight.zero_point)
    if not known or weight.scale != FP16:
        raise Refusal(f"no block holds {weight}: int8, int4, e1m2 and uint4 have fp16 scales")
    return {"type": _KINDS[weight.format]}


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return ("weight",)


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The bytes [N, K / 32 * bytes of a block] of a layer.

    Raises:
        Refusal: a scale or an offset has no fp16 number.
    """
    return {"weight": _blocks(layer.q, scheme["type"])}


def _blocks(q: QTensor, kind: str) -> Tensor:
    fmt = q.spec.format
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
    if not values.is_meta and not torch.equal(halves.float(), values):
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


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """The types by layer, which a file says in its header."""
    return {"quant_method": "gguf", "types": {n: scheme["type"] for n, scheme in schemes.items()}}


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer whose blocks are of a type of ours."""
    types = config["types"]
    return {name: {"type": types[name]} for name in layers if types.get(name) in BYTES}


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these bytes.

    Raises:
        Refusal: an offset of a Q4_1 block is no multiple of its scale.
    """
    kind, raw = scheme["type"], found["weight"]
    rows = raw.shape[0]
    parts = raw.reshape(rows, -1, BYTES[kind])
    if kind == "MXFP4":
        return _layer(kind, _codes(parts[:, :, 1:]), Scale(parts[:, :, 0].contiguous()))
    scale = _fp16(parts[:, :, :2])
    if kind == "Q8_0":
        return _layer(kind, parts[:, :, 2:].reshape(rows, -1), Scale(scale))
    if kind == "Q4_0":
        return _layer(kind, flip_sign(_codes(parts[:, :, 2:]), 4), Scale(scale))
    zero = _zero_points(scale.float(), _fp16(parts[:, :, 2:4]).float())
    return _layer(kind, _codes(parts[:, :, 4:]), Scale(scale, None, zero))


def _layer(kind: str, codes: Tensor, scale: Scale) -> Layer:
    spec = _SPECS[kind]
    return Layer(LayerSpec(spec), QTensor(codes, scale, spec, (codes.shape[0], codes.shape[1])))


def _fp16(raw: Tensor) -> Tensor:
    """Bytes [N, B, 2] as fp16 [N, B]."""
    return raw.contiguous().view(torch.float16)[:, :, 0]


def _codes(raw: Tensor) -> Tensor:
    """Bytes [N, B, 16] as codes [N, K]."""
    return torch.stack((raw & 15, raw >> 4), dim=2).reshape(raw.shape[0], -1)


def _zero_points(scale: Tensor, offset: Tensor) -> Tensor:
    """The codes z for which offset = -scale * z."""
    zero = (-offset / scale).nan_to_num().round().clamp(0, 15)
    if not zero.is_meta and not torch.equal(-scale * zero, offset):
        raise Refusal("its offsets are no multiples of its scales, as zero points are")
    return zero.to(torch.uint8)


BLOCKS = Contract(scheme, tensors, suffixes, config, schemes, read, fused=False, hub=False)
