"""The tensors of one layer under SDNQ, written and read."""

import math

import torch
from torch import Tensor

from minifloat import formats
from minifloat.export.contract import Layer, Refusal, Scheme, Shape, flip_sign
from minifloat.export.sdnq.packing import from_bytes, to_bytes
from minifloat.export.sdnq.scheme import format_of
from minifloat.formats import E4M3, E8M0, Format
from minifloat.qtensor import QTensor
from minifloat.rounding import decode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_NATIVE = {
    torch.float32: formats.FP32,
    torch.float16: formats.FP16,
    torch.bfloat16: formats.BF16,
}
_WHOLE = {
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    names = ["weight", "scale"]
    names += ["scale_2"] if scheme["scale_dtype"] else []
    names += ["zero_point"] if scheme["weights_dtype"].startswith("uint") else []
    names += ["svd_up", "svd_down"] if scheme["use_svd"] else []
    return tuple(names)


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    q = layer.q
    scale = q.scale.stored
    if q.spec.scale_format == E8M0:
        scale = decode(scale, E8M0).bfloat16()  # every power of two from 2^-127 on
    if q.scale.outer is not None:
        scale = scale.view(torch.float8_e4m3fn)
    found = {"weight": _weight(q, scheme), "scale": _in_shape(scale, scheme)}
    if q.scale.outer is not None:
        found["scale_2"] = q.scale.outer.float().reshape(1)
    if q.scale.zero is not None:
        found["zero_point"] = _in_shape(-scale.float() * q.scale.zero.float(), scheme)
    if layer.low_rank is not None:
        found["svd_up"], found["svd_down"] = layer.low_rank
    return found


def _weight(q: QTensor, scheme: Scheme) -> Tensor:
    fmt, name = q.spec.format, scheme["weights_dtype"]
    if fmt.bits == 8:
        return q.codes.reshape(_grouped(scheme)).contiguous().view(_WHOLE.get(name, torch.uint8))
    return to_bytes(flip_sign(q.codes, fmt.bits) if _is_offset(fmt) else q.codes, fmt.bits)


def _is_offset(fmt: Format) -> bool:
    return fmt.is_integer and fmt.signed


def _grouped(scheme: Scheme) -> list[int]:
    """The shape that the package quantizes: with an axis for groups, where there are several."""
    rows, columns, *kernel = scheme["shape"]
    size = scheme["group_size"]
    return [rows, columns // size, size, *kernel] if size > 0 else [rows, columns, *kernel]


def _in_shape(scale: Tensor, scheme: Scheme) -> Tensor:
    """Scales [T, U] with an axis for every one of the weight; a kernel's places repeat its row's."""
    shape = _grouped(scheme)
    if scheme["group_size"] == -2:
        return scale.reshape([1] * len(shape))
    places = shape[2:] if len(scheme["shape"]) > 2 and scheme["group_size"] < 0 else []
    full = scale.reshape(*scale.shape, *[1] * (len(shape) - 2))
    return full.expand(*scale.shape, *places).contiguous() if places else full


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors; E8M0's scales come back as BF16."""
    fmt, shape = format_of(scheme["weights_dtype"]), _matrix(scheme)
    size = scheme["group_size"]
    tile = {-1: (1, -1), -2: (-1, -1)}.get(size, (1, size))
    scale, outer, zero = found["scale"], found.get("scale_2"), found.get("zero_point")
    native = E4M3 if outer is not None else _NATIVE[scale.dtype]
    levels = native if outer is None else QuantSpec(native, (-1, -1))
    spec = QuantSpec(fmt, tile, levels, zero_point=zero is not None)
    stored = _tiles(scale, spec.tiles(shape))
    if outer is not None:
        stored, outer = stored.view(torch.uint8), outer.reshape(1, 1)
    if zero is not None:
        zero = _codes_of(_tiles(zero, spec.tiles(shape)), stored.float())
    branch = (found["svd_up"], found["svd_down"]) if scheme["use_svd"] else None
    q = QTensor(_read_codes(found["weight"], fmt, shape), Scale(stored, outer, zero), spec, shape)
    return Layer(LayerSpec(spec), q, low_rank=branch)


def _matrix(scheme: Scheme) -> Shape:
    rows, *rest = scheme["shape"]
    return rows, math.prod(rest)


def _tiles(values: Tensor, tiles: Shape) -> Tensor:
    """Scales [T, U] of the package's; a kernel's places hold one number."""
    return values.reshape(*tiles, -1)[:, :, 0].contiguous()


def _codes_of(zero: Tensor, scale: Tensor) -> Tensor:
    codes = (-zero / scale).nan_to_num().round().clamp(0, 255)
    if not zero.is_meta and not torch.equal(-scale * codes, zero):
        raise Refusal("its zero points are no multiples of its scales")
    return codes.to(torch.uint8)


def _read_codes(weight: Tensor, fmt: Format, shape: Shape) -> Tensor:
    if fmt.bits == 8:
        return weight.contiguous().view(torch.uint8).reshape(shape)
    codes = from_bytes(weight, fmt.bits, math.prod(shape)).reshape(shape)
    return flip_sign(codes, fmt.bits) if _is_offset(fmt) else codes
