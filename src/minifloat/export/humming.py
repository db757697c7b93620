"""Humming, the kernels through which vLLM runs any signed ExMy of up to 8 bits, and INT2 to INT8.

Source: humming-kernels 0.1.19 (`schema/humming.py`, `utils/weight.py`, `dtypes.py`) and vLLM's reader
(`quantization/humming.py`). Codes lie lowest bit first in int32 words without gaps. A float's value
follows IEEE's bias 2^(E-1) - 1 with subnormals, and every code is a number except the NaN and Inf of
E4M3 and E5M2: exactly our default of each. Integers are stored plus 2^(bits - 1) and named without a
sign's distinction. Channel and group scales that are no 8-bit float take the model's dtype on loading.
"""

import re
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
    weight_of,
)
from minifloat.formats import BF16, E4M3, E5M2, E8M0, FP16, FP32, Format, floating
from minifloat.models.fused import fused_groups
from minifloat.packing import pack, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_SCALES = {
    "float8e8m0": (E8M0, torch.float8_e8m0fnu),
    "float8e4m3": (E4M3, torch.float8_e4m3fn),
    "float8e5m2": (E5M2, torch.float8_e5m2),
}
_NATIVE = {torch.float32: FP32, torch.float16: FP16, torch.bfloat16: BF16}


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`dtype`, `group_size` and the kinds of scales."""
    weight = weight_of(spec)
    if spec.input is not None:
        raise Refusal(
            f"the input {spec.input} is left to the server's own setting; add --weights-only"
        )
    no_ragged(weight, shape)
    multiple(shape[1] * weight.format.bits, 32, "and rows are stored in 32-bit words")
    found: Scheme = {"dtype": _dtype(weight.format), **_scale_type(weight)}
    names = {fmt: name for name, (fmt, _) in _SCALES.items()}
    if weight.scale_format in names:
        found["scale_dtype"] = names[weight.scale_format]
    elif not weight.scale_format.is_native:
        raise Refusal(f"it has no {weight.scale_format} scales, only {', '.join(map(str, names))}")
    return found


def _dtype(fmt: Format) -> str:
    if is_integer(fmt):
        return f"int{fmt.bits}"
    if fmt.is_integer or fmt.is_table or not fmt.signed:
        raise Refusal(f"its weights are signed floats and integers, not {fmt}")
    if fmt != floating(fmt.exponent_bits, fmt.mantissa_bits):
        raise Refusal(f"{fmt} has another bias or top than its own")
    return f"float{fmt.bits}e{fmt.exponent_bits}m{fmt.mantissa_bits}"


def _scale_type(spec: QuantSpec) -> Scheme:
    """Which tile a scale covers, and whether there is a tensor's scale above it."""
    rows, columns = spec.tile
    kinds = {(1, -1): "channel", (-1, -1): "tensor"}
    kind = kinds.get(spec.tile) or ("group" if rows == 1 else "block" if rows > 1 else "")
    if not kind:
        raise Refusal(f"it has no scale for a tile of {spec.tile}")
    found: Scheme = {"weight_scale_type": kind}
    if kind in ("group", "block"):
        found["group_size"] = columns
    if kind == "block":
        found["group_size_n"] = rows
    if kind in ("block", "tensor") and not spec.scale_format.is_native:
        raise Refusal(f"its scales of a {kind} are fp32, not {spec.scale_format}")
    if spec.outer is not None:
        if spec.outer.tile != (-1, -1) or kind != "group":
            raise Refusal(f"its scales of scales are one a tensor over groups, not {spec}")
        found["scale_2_type"] = "tensor"
    return found


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return ("weight", "weight_scale") + ("weight_scale_2",) * ("scale_2_type" in scheme)


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    q, fmt = layer.q, layer.q.spec.format
    codes = flip_sign(q.codes, fmt.bits) if fmt.is_integer else q.codes
    scale = q.scale.stored
    if "scale_dtype" in scheme:
        scale = scale.view(_SCALES[scheme["scale_dtype"]][1])
    elif scheme["weight_scale_type"] in ("block", "tensor"):
        scale = scale.float()
    if scheme["weight_scale_type"] == "tensor":
        scale = scale.reshape(1)
    found = {"weight": as_words(pack(codes, fmt.bits)), "weight_scale": scale}
    if q.scale.outer is not None:
        found["weight_scale_2"] = q.scale.outer.float().reshape(1)
    return found


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`: the first layer's scheme for all, the others as `dynamic` rules."""
    first = next(iter(schemes.values()))
    rest = {_rule(n): scheme for n, scheme in _with_wholes(schemes) if scheme != first}
    wholes = [whole for whole, parts in fused_groups(kept).items() if set(parts) <= set(kept)]
    return {
        "quant_method": "humming",
        **first,
        "dynamic": rest,
        "ignore": sorted({*kept, *wholes, "lm_head"} - set(schemes)),
    }


def _with_wholes(schemes: dict[str, Scheme]) -> list[tuple[str, Scheme]]:
    """Layers and the fused ones that they become: vLLM matches its rules against the latter."""
    wholes = fused_groups(schemes).items()
    return [*schemes.items(), *((whole, schemes[parts[0]]) for whole, parts in wholes)]


def _rule(name: str) -> str:
    return f"+:{re.escape(name)}$"


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors."""
    found = {}
    for name, present in layers.items():
        if "weight_scale" not in present:
            continue
        rules = config.get("dynamic", {}).items()
        row = next((row for key, row in rules if re.match(key[2:], name)), config)
        keys = ("dtype", "weight_scale_type", "group_size", "group_size_n", "scale_2_type")
        found[name] = {key: row[key] for key in (*keys, "scale_dtype") if key in row}
    return found


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors."""
    fmt = _element(scheme["dtype"])
    words, scale = found["weight"], found["weight_scale"]
    columns = words.shape[1] * 32 // fmt.bits
    codes = unpack(as_bytes(words, words.shape[1] * 4), fmt.bits, columns)
    codes = flip_sign(codes, fmt.bits) if fmt.is_integer else codes
    spec = QuantSpec(fmt, _tile(scheme), _scale_format(scheme, scale.dtype))
    stored = scale.view(torch.uint8) if "scale_dtype" in scheme else scale
    shape = codes.shape[0], columns
    outer = found.get("weight_scale_2")
    whole = Scale(stored.reshape(spec.tiles(shape)), None if outer is None else outer.reshape(1, 1))
    return Layer(LayerSpec(spec), QTensor(codes, whole, spec, shape))


def _element(name: str) -> Format:
    if match := re.fullmatch(r"int(\d)", name):
        return formats.integer(int(match[1]))
    match = re.fullmatch(r"float\d+_?e(\d)m(\d)", name)
    if match is None:
        raise Refusal(f"its dtype {name!r} has no format here")
    return floating(int(match[1]), int(match[2]))


def _tile(scheme: Scheme) -> Shape:
    fixed = {"channel": (1, -1), "tensor": (-1, -1)}
    kind = scheme["weight_scale_type"]
    return fixed.get(kind) or (scheme.get("group_size_n", 1), scheme["group_size"])


def _scale_format(scheme: Scheme, dtype: torch.dtype) -> Format | QuantSpec:
    fmt = _SCALES[scheme["scale_dtype"]][0] if "scale_dtype" in scheme else _NATIVE[dtype]
    return QuantSpec(fmt, (-1, -1)) if "scale_2_type" in scheme else fmt


HUMMING = Contract(scheme, tensors, suffixes, config, schemes, read)
