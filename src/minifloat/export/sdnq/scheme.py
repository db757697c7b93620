"""A layer's spec in SDNQ's words, or the reason why there are none."""

import math
import re

from minifloat import formats
from minifloat.export.contract import Refusal, Scheme, Shape, is_integer, no_ragged, weight_of
from minifloat.export.stored import Stored
from minifloat.formats import E4M3, E5M2, E8M0, Format
from minifloat.spec import LayerSpec, QuantSpec

_TORCH = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2"}
# How many codes share some bytes, by bits.
UNITS = {2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 7: 8, 8: 1}


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`weights_dtype`, `group_size` and `scale_dtype` of a layer, and its shape."""
    weight = weight_of(spec)
    if spec.input is not None:
        raise Refusal(f"it has no input like {spec.input}; add --weights-only to leave inputs out")
    no_ragged(weight, shape)
    if math.prod(shape) % UNITS[weight.format.bits]:
        raise Refusal(f"{math.prod(shape)} codes of {weight.format.bits} bits do not fill bytes")
    return {
        "weights_dtype": _dtype(weight),
        "group_size": _group(weight, shape),
        "scale_dtype": _scale(weight),
        "use_svd": False,
        "svd_rank": 0,
        "shape": list(shape),
    }


def with_form(scheme: Scheme, stored: Stored) -> Scheme:
    """The scheme of a layer that has a low-rank branch or is a convolution."""
    rows, columns = scheme["shape"]
    if stored.kernel is not None:
        height, width = stored.kernel
        if scheme["group_size"] > 0 and height * width > 1:
            raise Refusal("its groups in convolutions cover channels alone, and not the kernel")
        scheme = {**scheme, "shape": [rows, columns // (height * width), height, width]}
    if stored.rank:
        scheme = {**scheme, "use_svd": True, "svd_rank": stored.rank}
    return scheme


def _dtype(spec: QuantSpec) -> str:
    fmt = spec.format
    if is_integer(fmt):
        return f"int{fmt.bits}"
    if fmt.is_integer and spec.zero_point:
        if spec.scale_format not in (formats.FP16, formats.BF16):
            raise Refusal("its zero points are exact beside fp16 and bf16 scales alone")
        return f"uint{fmt.bits}"
    if fmt in _TORCH:
        return _TORCH[fmt]
    if fmt.is_integer or fmt.is_table or not fmt.signed:
        raise Refusal(f"its weights are signed floats and integers, not {fmt}")
    if fmt != formats.floating(fmt.exponent_bits, fmt.mantissa_bits):
        raise Refusal(f"{fmt} has another bias or top than its own")
    return f"float{fmt.bits}_e{fmt.exponent_bits}m{fmt.mantissa_bits}fn"


def format_of(dtype: str) -> Format:
    """The format of a `weights_dtype`.

    Raises:
        Refusal: there is none.
    """
    names = {name: fmt for fmt, name in _TORCH.items()}
    if dtype in names:
        return names[dtype]
    if match := re.fullmatch(r"(u?)int([2-8])", dtype):
        return formats.integer(int(match[2]), signed=not match[1])
    if match := re.fullmatch(r"float\d_e(\d)m(\d)fn", dtype):
        return formats.floating(int(match[1]), int(match[2]))
    raise Refusal(f"its dtype {dtype!r} has no format here")


def _group(spec: QuantSpec, shape: Shape) -> int:
    """Columns that share a scale; -1 is a row and -2 the tensor."""
    if spec.tile == (-1, -1):
        return -2
    if spec.tile[0] != 1:
        raise Refusal(f"a scale covers a tensor, a row or a part of it, not {spec.tile}")
    return -1 if spec.tile[1] in (-1, shape[1]) else spec.tile[1]


def _scale(spec: QuantSpec) -> str | None:
    if spec.outer is not None:
        if spec.scale_format != E4M3 or spec.outer.tile != (-1, -1):
            raise Refusal(f"scales of scales are e4m3 under one a tensor, not {spec.scale}")
        return _TORCH[E4M3]
    if not spec.scale_format.is_native and spec.scale_format != E8M0:
        raise Refusal(f"it has no {spec.scale_format} scales")
    return None
