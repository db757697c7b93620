"""The pieces of one weight under torchao, written and read."""

import torch
from torch import Tensor

from minifloat import formats
from minifloat.export.contract import Layer, Refusal, Scheme, Shape, flip_sign
from minifloat.export.torchao.scheme import (
    FLOAT8,
    FP8_TENSOR_INPUT,
    MX,
    ROW,
    SYMMETRIC,
    TENSOR,
    mx_input,
)
from minifloat.formats import Format
from minifloat.packing import pack, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, NVFP4, LayerSpec, QuantSpec

_PREFIX = "_weight_"
_NATIVE = {
    torch.float32: formats.FP32,
    torch.float16: formats.FP16,
    torch.bfloat16: formats.BF16,
}


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return tuple(_PREFIX + name for name in scheme["_tensor_data_names"])


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The pieces of one layer's weight by suffix."""
    q, kind = layer.q, scheme["_type"]
    scale, zero = q.scale.stored, q.scale.zero
    if kind == "NVFP4Tensor":
        assert q.scale.outer is not None
        scale = scale.view(torch.float8_e4m3fn)
        found = {"qdata": pack(q.codes, 4), "per_tensor_scale": q.scale.outer.reshape(())}
    elif kind == "MXTensor":
        dtype = {8: torch.float8_e4m3fn, 4: torch.uint8}[q.spec.format.bits]
        scale = scale.view(torch.float8_e8m0fnu)
        found = {"qdata": pack(q.codes, q.spec.format.bits).view(dtype)}
    elif kind == "Float8Tensor":
        scale = scale.float()
        found = {"qdata": q.codes.contiguous().view(getattr(torch, FLOAT8[q.spec.format]))}
    else:
        scale = scale.float() if kind == "Int8Tensor" else scale
        half = 1 << q.spec.format.bits - 1
        zeros = torch.full_like(q.scale.stored, half, dtype=torch.uint8) if zero is None else zero
        found = {
            "qdata": _signed(_offset(q.codes, q.spec.format), half),
            "zero_point": _signed(zeros, half),
        }
    found["scale"] = scale
    return {_PREFIX + name: found[name] for name in scheme["_tensor_data_names"]}


def _offset(codes: Tensor, fmt: Format) -> Tensor:
    """Codes counted from the lowest number."""
    return flip_sign(codes, fmt.bits) if fmt.signed else codes


def _signed(codes: Tensor, half: int) -> Tensor:
    return (codes.to(torch.int16) - half).to(torch.int8)


def _unsigned(numbers: Tensor, half: int) -> Tensor:
    return (numbers.to(torch.int16) + half).to(torch.uint8)


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these pieces.

    Raises:
        Refusal: a class, an order of scales or an input that is not read here.
    """
    data, kind = scheme["_data"], scheme["_type"]
    pieces = {name.removeprefix(_PREFIX): piece for name, piece in found.items()}
    if data.get("is_swizzled_scales"):
        raise Refusal("its scales lie in the swizzled order of kernels")
    if set(pieces) - {"qdata", "scale", "zero_point", "per_tensor_scale"}:
        raise Refusal(f"its weight has {', '.join(sorted(pieces))}, which is more than is read")
    if kind == "NVFP4Tensor" and "per_tensor_scale" in pieces:
        codes = unpack(pieces["qdata"], 4, pieces["qdata"].shape[1] * 2)
        outer = pieces["per_tensor_scale"].reshape(1, 1)
        q = _q(codes, Scale(pieces["scale"].view(torch.uint8), outer), NVFP4)
    elif kind == "MXTensor":
        fmt = {name: fmt for fmt, name in MX.items()}[data["elem_dtype"]["_data"]]
        packed = pieces["qdata"].view(torch.uint8)
        codes = unpack(packed, fmt.bits, packed.shape[1] * 8 // fmt.bits)
        spec = QuantSpec(fmt, (1, 32), formats.E8M0, "ocp")
        q = _q(codes, Scale(pieces["scale"].view(torch.uint8)), spec)
    elif kind == "Float8Tensor":
        codes = pieces["qdata"].view(torch.uint8)
        names = {getattr(torch, name): fmt for fmt, name in FLOAT8.items()}
        spec = QuantSpec(names[pieces["qdata"].dtype], _tile(data["block_size"], codes.shape))
        q = _q(codes, Scale(pieces["scale"]), spec)
    elif kind in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
        q = _integers(scheme, pieces)
    else:
        raise Refusal(f"its weight is torchao's {kind}")
    return Layer(LayerSpec(q.spec, _input(q.spec, data)), q)


def _integers(scheme: Scheme, pieces: dict[str, Tensor]) -> QTensor:
    """Signed integers, or unsigned ones with the zero points that are stored."""
    data, zero = scheme["_data"], pieces.get("zero_point")
    bits = int(data.get("target_dtype", {"_data": "int8"})["_data"].removeprefix("int"))
    half, signed = 1 << bits - 1, zero is None or bool(scheme.get(SYMMETRIC))
    codes = _unsigned(pieces["qdata"], half)
    tile, native = _tile(data["block_size"], codes.shape), _NATIVE[pieces["scale"].dtype]
    spec = QuantSpec(formats.integer(bits, signed=signed), tile, native, zero_point=not signed)
    if signed or zero is None:
        return _q(flip_sign(codes, bits), Scale(pieces["scale"]), spec)
    return _q(codes, Scale(pieces["scale"], None, _unsigned(zero, half)), spec)


def _tile(block: list[int], shape: torch.Size) -> Shape:
    """A block as a tile: -1 for a whole axis, but 1 for one row."""
    rows, columns = (
        -1 if size == whole else size for size, whole in zip(block, shape, strict=True)
    )
    return (1 if block[0] == 1 else rows), columns


def _input(weight: QuantSpec, data: Scheme) -> QuantSpec | None:
    act = data.get("act_quant_kwargs")
    if data.get("activation_quantization"):
        raise Refusal("its input has asymmetric integers by token")
    if act is None:
        return None
    known = {
        ("QuantizeTensorToInt8Kwargs", str(ROW)): INT8_TOKEN,
        ("QuantizeTensorToFloat8Kwargs", str(ROW)): FP8_TOKEN,
        ("QuantizeTensorToFloat8Kwargs", str(TENSOR)): FP8_TENSOR_INPUT,
        ("QuantizeTensorToMXKwargs", "None"): mx_input(weight.format),
    }
    asked = act["_type"], str(act["_data"].get("granularity"))
    mapping = act["_data"].get("mapping_type", {"_data": "SYMMETRIC"})["_data"]
    rule = act["_data"].get("scaling_mode", {"_data": "FLOOR"})["_data"]
    if asked not in known or mapping != "SYMMETRIC" or rule != "FLOOR":
        raise Refusal(f"its input is quantized by {act}")
    return known[asked]


def _q(codes: Tensor, scale: Scale, spec: QuantSpec) -> QTensor:
    return QTensor(codes, scale, spec, (codes.shape[0], codes.shape[1]))
