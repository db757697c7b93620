"""The tensors of one layer under compressed-tensors, written and read."""

import torch
from torch import Tensor

from minifloat.export.compressed_tensors.arguments import MX, input_spec, weight_spec
from minifloat.export.contract import (
    Layer,
    Scheme,
    Shape,
    as_bytes,
    as_words,
    block_scale,
    flip_sign,
    static_scale,
)
from minifloat.packing import pack, packed_width, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    layout = scheme["format"]
    names = ["weight_packed" if "pack" in layout else "weight", "weight_scale"]
    if layout == "pack-quantized":
        names.append("weight_shape")
    if not scheme["weights"]["symmetric"]:
        names.append("weight_zero_point")
    if layout == "nvfp4-pack-quantized":
        names.append("weight_global_scale")
    if _is_nvfp4_input(scheme):
        names.append("input_global_scale")
    if _is_static(scheme):
        asymmetric = not scheme["input_activations"]["symmetric"]
        names += ["input_scale"] + ["input_zero_point"] * asymmetric
    return tuple(names)


def _is_static(scheme: Scheme) -> bool:
    """Whether inputs have calibrated scales; the package's default of `dynamic` is False."""
    given = scheme["input_activations"]
    return given is not None and given.get("dynamic", False) is False


def _is_nvfp4_input(scheme: Scheme) -> bool:
    """Whether inputs have block scales of the run under a stored one."""
    given = scheme["input_activations"]
    return given is not None and given["strategy"] == "tensor_group"


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    found = _weights(layer.q, scheme)
    if _is_nvfp4_input(scheme):
        found["input_global_scale"] = block_scale(layer).reshape(1).reciprocal()
    if _is_static(scheme):
        given = static_scale(layer)
        found["input_scale"] = given.stored.float().reshape(1)
        if given.zero is not None:
            found["input_zero_point"] = flip_sign(given.zero, 8).view(torch.int8).reshape(1)
    return found


def _weights(q: QTensor, scheme: Scheme) -> dict[str, Tensor]:
    layout = scheme["format"]
    if layout == "pack-quantized":
        return _packed_integers(q)
    if layout == "nvfp4-pack-quantized":
        return _nvfp4(q)
    if layout in MX.values():
        name = "weight" if layout == "mxfp8-quantized" else "weight_packed"
        packed = pack(q.codes, q.spec.format.bits)
        dtype = torch.float8_e4m3fn if name == "weight" else torch.uint8
        return {name: packed.view(dtype), "weight_scale": q.scale.stored}
    scale = q.scale.stored.float()
    dtype = torch.int8 if q.spec.format.is_integer else torch.float8_e4m3fn
    shape = (1,) if q.spec.tile == (-1, -1) else scale.shape
    return {"weight": q.codes.contiguous().view(dtype), "weight_scale": scale.reshape(shape)}


def _packed_integers(q: QTensor) -> dict[str, Tensor]:
    fmt = q.spec.format
    codes = q.codes if q.scale.zero is not None else flip_sign(q.codes, fmt.bits)
    found = {
        "weight_packed": as_words(pack(codes, fmt.bits)),
        "weight_scale": q.scale.stored,
        "weight_shape": torch.tensor(q.shape, dtype=torch.int64),
    }
    if q.scale.zero is not None:
        columns = as_words(pack(q.scale.zero.T.contiguous(), fmt.bits))
        found["weight_zero_point"] = columns.T.contiguous()
    return found


def _nvfp4(q: QTensor) -> dict[str, Tensor]:
    assert q.scale.outer is not None
    return {
        "weight_packed": pack(q.codes, 4),
        "weight_scale": q.scale.stored.view(torch.float8_e4m3fn),
        "weight_global_scale": q.scale.outer.reshape(1).reciprocal(),
    }


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors; scales keep the dtype that they are stored in."""
    spec, given = (
        weight_spec(scheme["weights"], found["weight_scale"].dtype),
        scheme["input_activations"],
    )
    layer = LayerSpec(spec, None if given is None else input_spec(given, _is_static(scheme)))
    calibrated = None
    if _is_nvfp4_input(scheme):
        calibrated = Scale(found["input_global_scale"].float().reciprocal().reshape(1, 1))
    elif _is_static(scheme):
        calibrated = _read_static(found)
    return Layer(layer, _read_weights(scheme["format"], spec, found), calibrated)


def _read_static(found: dict[str, Tensor]) -> Scale:
    """A static input's scale; a zero point is found if the scheme has one."""
    zero = found.get("input_zero_point")
    if zero is not None:
        zero = flip_sign(zero.view(torch.uint8), 8).reshape(1, 1)
    return Scale(found["input_scale"].float().reshape(1, 1), None, zero)


def _read_weights(layout: str, spec: QuantSpec, found: dict[str, Tensor]) -> QTensor:
    scale = found["weight_scale"]
    if layout == "pack-quantized":
        return _read_integers(spec, found)
    if layout == "nvfp4-pack-quantized":
        codes = unpack(found["weight_packed"], 4, found["weight_packed"].shape[1] * 2)
        outer = found["weight_global_scale"].reciprocal().reshape(1, 1)
        return _q(codes, Scale(scale.view(torch.uint8), outer), spec)
    if layout in MX.values():
        packed = found["weight" if layout == "mxfp8-quantized" else "weight_packed"]
        columns = packed.shape[1] * 8 // spec.format.bits
        codes = unpack(packed.view(torch.uint8), spec.format.bits, columns)
        return _q(codes, Scale(scale), spec)
    codes = found["weight"].view(torch.uint8)
    return _q(codes, Scale(scale.reshape(spec.tiles(_matrix(codes)))), spec)


def _read_integers(spec: QuantSpec, found: dict[str, Tensor]) -> QTensor:
    rows, columns = (int(size) for size in found["weight_shape"])
    bits, scale = spec.format.bits, found["weight_scale"]
    codes = unpack(as_bytes(found["weight_packed"], packed_width(columns, bits)), bits, columns)
    if not spec.zero_point:
        return _q(flip_sign(codes, bits), Scale(scale), spec)
    lines = as_bytes(found["weight_zero_point"].T, packed_width(rows, bits))
    zero = unpack(lines, bits, rows).T.contiguous()
    return _q(codes, Scale(scale, None, zero), spec)


def _q(codes: Tensor, scale: Scale, spec: QuantSpec) -> QTensor:
    return QTensor(codes, scale, spec, _matrix(codes))


def _matrix(x: Tensor) -> Shape:
    return x.shape[0], x.shape[1]
