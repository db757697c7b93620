"""compressed-tensors, which vLLM, SGLang and transformers read: one scheme a group of layers.

Source: compressed-tensors 0.20 (`quantization/quant_args.py`, `quant_scheme.py`, `compressors/`).
Readers forbid unknown keys in the arguments, so that only those of version 0.17 (which vLLM 0.33
pins) are written. Facts that the tests hold against the package itself:

- 4-bit floats: even columns in the low nibble. 6-bit: four codes in three bytes, lowest bit first.
- integers: the value plus 2^(bits - 1), lowest bit first, in int32 words that codes may straddle;
  zero points likewise, but along the rows.
- NVFP4's global scale is a *divisor*: value = code * scale / global.
- A static input has one fp32 `input_scale` [1], and `input_zero_point` int8 where it is asymmetric: the
  unsigned one minus 128.
- W4A8 and W4AFP8 are `int-quantized` by default, a byte a code; `pack-quantized` halves them and is
  what vLLM's schemes for both ask for.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minifloat import formats
from minifloat.export.contract import (
    Contract,
    Layer,
    Refusal,
    Scheme,
    Shape,
    as_bytes,
    as_words,
    flip_sign,
    is_integer,
    multiple,
    no_ragged,
    static_scale,
    weight_of,
)
from minifloat.export.targets import matches
from minifloat.formats import E2M1, E2M3, E4M3, E8M0, FP32, INT8, UINT8, Format
from minifloat.packing import pack, packed_width, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_FLOATS = {E2M1: 4, E2M3: 6, E4M3: 8}
_MX = {
    E2M1: "mxfp4-pack-quantized",
    E2M3: "mxfp6-pack-quantized",
    E4M3: "mxfp8-quantized",
}
_NVFP4 = QuantSpec(E2M1, (1, 16), QuantSpec(E4M3, (-1, -1)))
# An input whose block scales have no scale of their own: a global scale of 1.
_NVFP4_INPUT = QuantSpec(E2M1, (1, 16), E4M3)


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`format`, `weights` and `input_activations` of a config group."""
    weight = weight_of(spec)
    layout = _format(weight, spec.input)
    ragged = weight.tile[0] > 1 and weight.tile[1] > 1  # blocks may be cut off at the edges
    if not ragged:
        no_ragged(weight, shape)
    if layout.endswith("fp4-pack-quantized"):
        multiple(shape[1], 2, "and two codes share a byte")
    return {
        "format": layout,
        "weights": _weight_args(weight),
        "input_activations": _input_args(spec, weight, layout),
    }


def _format(weight: QuantSpec, given: QuantSpec | None) -> str:
    """The name of the layout that holds this weight."""
    fmt = weight.format
    if weight == _NVFP4:
        return "nvfp4-pack-quantized"
    if weight.tile == (1, 32) and weight.scale == E8M0 and fmt in _MX:
        return _MX[fmt]
    if weight.outer is not None or not weight.scale_format.is_native:
        raise Refusal(f"it has no layout for {weight}: {fmt} with {weight.scale_format} scales")
    if fmt == E4M3:
        return "float-quantized"
    if not fmt.is_integer or not (fmt.signed or weight.zero_point):
        raise Refusal(f"it has no {fmt}: its floats are e2m1, e2m3 and e4m3, its integers signed")
    if weight.tile[0] != 1:
        raise Refusal(f"its integers are scaled by channel or group, not by {weight.tile}")
    if fmt == INT8 and weight.tile[1] == -1 and given is not None:
        return "int-quantized"
    return "pack-quantized"


def _weight_args(spec: QuantSpec) -> dict[str, Any]:
    if spec == _NVFP4:
        return _args(spec, 4, "tensor_group", "torch.float8_e4m3fn")
    bits = _FLOATS.get(spec.format, spec.format.bits)
    return _args(spec, bits, _strategy(spec), "torch.uint8" if spec.scale == E8M0 else None)


def _input_args(layer: LayerSpec, weight: QuantSpec, layout: str) -> dict[str, Any] | None:
    spec = layer.input
    if spec is None:
        return None
    if layer.static_input:
        return _static_args(spec, weight, layout)
    if spec == replace(_NVFP4_INPUT, dynamic=True):
        return {**_args(spec, 4, "tensor_group", "torch.float8_e4m3fn"), "dynamic": "local"}
    if spec == replace(_NVFP4, dynamic=True):
        raise Refusal(
            "its input's outer scale must be a constant; give the input the spec "
            '{"format": "e2m1", "tile": [1, 16], "scale": "e4m3"}, whose constant is 1'
        )
    known = spec.format in _FLOATS or (is_integer(spec.format) and spec.format.bits in (4, 8))
    if spec.tile == (1, 32) and spec.scale == E8M0 and spec.format in _MX:
        return _args(spec, _FLOATS[spec.format], "group", "torch.uint8")
    if not known or spec.scale != FP32 or spec.zero_point or spec.format in (E2M1, E2M3):
        raise Refusal(f"it has no input like {spec}")
    names = {(1, -1): "token", (-1, -1): "tensor"}
    strategy = names.get(spec.tile, "group" if spec.tile[0] == 1 else "")
    if not strategy:
        raise Refusal(f"it has no input scaled by {spec.tile}")
    return _args(spec, spec.format.bits, strategy, None)


def _static_args(spec: QuantSpec, weight: QuantSpec, layout: str) -> dict[str, Any]:
    """One calibrated scale a tensor: beside 8-bit weights by tensor or channel, as vLLM reads it."""
    if layout not in ("float-quantized", "int-quantized") or weight.tile[1] != -1:
        raise Refusal(
            "a calibrated input goes with e4m3 weights by tensor or channel and with int8 ones by "
            f"channel, not with {weight}"
        )
    if replace(spec, zero_point=False) not in (_static(weight.format), _static(UINT8)):
        raise Refusal(f"a calibrated input has one fp32 scale and the weights' format, not {spec}")
    if spec.zero_point != (spec.format == UINT8) or (spec.zero_point and weight.format != INT8):
        raise Refusal(f"a calibrated input with a zero point is uint8 beside int8, not {spec}")
    return _args(spec, 8, "tensor", None)


def _static(fmt: Format) -> QuantSpec:
    return QuantSpec(fmt, (-1, -1))


def _strategy(spec: QuantSpec) -> str:
    rows, columns = spec.tile
    if columns == -1:
        return {1: "channel", -1: "tensor"}.get(rows, "") or _no_tile(spec)
    if rows == 1:
        return "group"
    return "block" if rows > 1 else _no_tile(spec)


def _no_tile(spec: QuantSpec) -> str:
    raise Refusal(f"it has no scale for a tile of {spec.tile}")


def _args(spec: QuantSpec, bits: int, strategy: str, scale_dtype: str | None) -> dict[str, Any]:
    args: dict[str, Any] = {
        "num_bits": bits,
        "type": "int" if spec.format.is_integer else "float",
        "symmetric": not spec.zero_point,
        "strategy": strategy,
        "group_size": spec.tile[1] if "group" in strategy else None,
        "dynamic": spec.dynamic,
    }
    if strategy == "block":
        args["block_structure"] = list(spec.tile)
    if scale_dtype is not None:
        args["scale_dtype"] = scale_dtype
    return args


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    layout = scheme["format"]
    names = ["weight_packed" if "pack" in layout else "weight", "weight_scale"]
    if layout == "pack-quantized":
        names.append("weight_shape")
    if not scheme["weights"]["symmetric"]:
        names.append("weight_zero_point")
    if layout == "nvfp4-pack-quantized":
        names.append("weight_global_scale")
        if scheme["input_activations"] is not None:
            names.append("input_global_scale")
    if _is_static(scheme):
        asymmetric = not scheme["input_activations"]["symmetric"]
        names += ["input_scale"] + ["input_zero_point"] * asymmetric
    return tuple(names)


def _is_static(scheme: Scheme) -> bool:
    """Whether inputs have calibrated scales; the package's default of `dynamic` is False."""
    given = scheme["input_activations"]
    return given is not None and given.get("dynamic", False) is False


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    found = _weights(layer.q, scheme)
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
        return _nvfp4(q, scheme)
    if layout in _MX.values():
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


def _nvfp4(q: QTensor, scheme: Scheme) -> dict[str, Tensor]:
    assert q.scale.outer is not None
    found = {
        "weight_packed": pack(q.codes, 4),
        "weight_scale": q.scale.stored.view(torch.float8_e4m3fn),
        "weight_global_scale": q.scale.outer.reshape(1).reciprocal(),
    }
    if scheme["input_activations"] is not None:
        found["input_global_scale"] = torch.ones(1)
    return found


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`: one group for every distinct scheme, in the order of the layers."""
    groups: list[tuple[Scheme, list[str]]] = []
    for name, scheme in schemes.items():
        members = next((names for known, names in groups if known == scheme), None)
        if members is None:
            groups.append((scheme, [name]))
        else:
            members.append(name)
    mixed = len({scheme["format"] for scheme, _ in groups}) > 1
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if mixed else groups[0][0]["format"],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted({*kept, "lm_head"} - set(schemes)),
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if len(groups) == 1 else names,
                "output_activations": None,
                **scheme,
            }
            for i, (scheme, names) in enumerate(groups)
        },
    }


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors, by the groups' targets."""
    found = {}
    for name, present in layers.items():
        if "weight_scale" not in present:
            continue
        for group in config["config_groups"].values():
            if any(matches(name, target) for target in group["targets"]):
                keys = ("format", "weights", "input_activations")
                found[name] = {key: group.get(key) for key in keys}
                found[name]["format"] = found[name]["format"] or config["format"]
                break
    return found


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors; scales keep the dtype that they are stored in."""
    spec, given = _spec(scheme["weights"], found["weight_scale"].dtype), scheme["input_activations"]
    layer = LayerSpec(spec, None if given is None else _input_spec(given, _is_static(scheme)))
    static = _read_static(found) if _is_static(scheme) else None
    return Layer(layer, _read_weights(scheme["format"], spec, found), static)


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
    if layout in _MX.values():
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


def _spec(args: dict[str, Any], dtype: torch.dtype) -> QuantSpec:
    """A weight's spec from its arguments and the dtype of its scales."""
    if args["strategy"] == "tensor_group":
        return _NVFP4
    fmt = _element(args)
    if dtype == torch.uint8:
        return QuantSpec(fmt, (1, 32), E8M0, "ocp")
    names = {torch.float32: formats.FP32, torch.float16: formats.FP16, torch.bfloat16: formats.BF16}
    return QuantSpec(fmt, _tile(args), names[dtype], zero_point=not args["symmetric"])


def _input_spec(args: dict[str, Any], static: bool) -> QuantSpec:
    if static and args["strategy"] != "tensor":
        raise Refusal(f"its input has calibrated scales by {args['strategy']}, not one a tensor")
    if args["strategy"] == "tensor_group":
        return replace(_NVFP4_INPUT, dynamic=True)
    fmt = _element(args)
    if args.get("scale_dtype") == "torch.uint8":
        return QuantSpec(fmt, (1, 32), E8M0, "ocp", dynamic=True)
    return QuantSpec(fmt, _tile(args), zero_point=not args["symmetric"], dynamic=not static)


def _element(args: dict[str, Any]) -> Format:
    bits = args["num_bits"]
    if args["type"] == "float":
        return {width: fmt for fmt, width in _FLOATS.items()}[bits]
    return formats.integer(bits, signed=bool(args["symmetric"]))


def _tile(args: dict[str, Any]) -> Shape:
    if args["strategy"] == "block":
        rows, columns = args["block_structure"]
        return rows, columns
    tiles = {"tensor": (-1, -1), "channel": (1, -1), "token": (1, -1)}
    return tiles.get(args["strategy"]) or (1, args["group_size"])


COMPRESSED_TENSORS = Contract(scheme, tensors, suffixes, config, schemes, read, reciprocal=True)
