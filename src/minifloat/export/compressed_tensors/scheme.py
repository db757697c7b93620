"""A layer's spec as a config group of compressed-tensors, or the reason why there is none."""

from dataclasses import replace
from typing import Any

from minifloat.export.compressed_tensors.arguments import (
    FLOATS,
    MX,
    NVFP4_INPUT,
    NVFP4_PLAIN_INPUT,
)
from minifloat.export.contract import (
    Refusal,
    Scheme,
    Shape,
    is_integer,
    multiple,
    no_ragged,
    weight_of,
)
from minifloat.formats import E2M1, E2M3, E4M3, E8M0, FP32, INT8, UINT8, Format
from minifloat.spec import NVFP4, LayerSpec, QuantSpec


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
    if weight == NVFP4:
        return "nvfp4-pack-quantized"
    if weight.tile == (1, 32) and weight.scale == E8M0 and fmt in MX:
        return MX[fmt]
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
    if spec == NVFP4:
        return _args(spec, 4, "tensor_group", "torch.float8_e4m3fn")
    bits = FLOATS.get(spec.format, spec.format.bits)
    return _args(spec, bits, _strategy(spec), "torch.uint8" if spec.scale == E8M0 else None)


def _input_args(layer: LayerSpec, weight: QuantSpec, layout: str) -> dict[str, Any] | None:
    spec = layer.input
    if spec is None:
        return None
    if layer.static_input:
        return _static_args(spec, weight, layout)
    if spec in (NVFP4_INPUT, NVFP4_PLAIN_INPUT):
        return {**_args(spec, 4, "tensor_group", "torch.float8_e4m3fn"), "dynamic": "local"}
    known = spec.format in FLOATS or (is_integer(spec.format) and spec.format.bits in (4, 8))
    if spec.tile == (1, 32) and spec.scale == E8M0 and spec.format in MX:
        return _args(spec, FLOATS[spec.format], "group", "torch.uint8")
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
