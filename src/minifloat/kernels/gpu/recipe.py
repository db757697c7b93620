"""What the kernels are told of a layer: constants of its spec, and which numbers are multiplied.

An operand is what the tensor cores take: floats of the activations' own dtype, int8 or FP8 (E4M3).
Both of the short ones are exact: E2M1 is half of -12..12, so FP4 and INT4 weights under INT8 activations
are integer products, and every FP4 value is an E4M3 number. With M2's scales (ZeroQuant-FP) so is every
FP4 value times its power of two: the main loop is FP8's alone and one real scale a row comes at the end.
With QoQ's integer scales and zero points it is INT8's.
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from minifloat.formats import E4M3, Format
from minifloat.kernels import fusion
from minifloat.spec import CacheSpec, LayerSpec, QuantSpec

Operand = Literal["float", "int8", "fp8"]
Kind = Literal["float", "integer", "table"]
# Columns of the shortest product of 8-bit numbers.
SHORTEST = 32
# Columns of a group that is a row: more than any, so that kernels do not depend on a row's length.
LONG = 1 << 30


@dataclass(frozen=True)
class Recipe:
    """A weight's codes as the kernels see them.

    Attributes:
        bits: of a code.
        kind: how a code becomes a number: its fields moved to fp32's places, two's complement or
            a plain integer, or a table.
        mantissa, bias: of a float.
        nan: the magnitude's code that is NaN though fp32 takes it for a number; -1 for none.
        signed: whether an integer is two's complement.
        table: what the codes stand for, where they are looked up.
        short: whether every number is one of fp16 and bf16.
        scale_table: what the codes of a scale stand for; None for native scales.
        tile_rows, group: rows and columns under one scale; -1 for all.
        operand: what is multiplied.
        power: numbers times this power of two are operands, and its inverse comes after the sums.
        exact: whether operands times their scales are operands too, FP8 or (QoQ's) INT8.
    """

    bits: int
    kind: Kind
    mantissa: int
    bias: int
    nan: int
    signed: bool
    table: tuple[float, ...] | None
    short: bool
    scale_table: tuple[float, ...] | None
    tile_rows: int
    group: int
    operand: Operand
    power: float
    exact: bool

    def reading(self, codes: Tensor) -> dict[str, Any]:
        """Constants of a kernel that reads codes [..., bytes]: as whole dwords where they lie so."""
        whole = codes.shape[-1] % 4 == 0 and codes.data_ptr() % 4 == 0
        return {
            "BITS": self.bits,
            "WIDE": whole and self.bits in (2, 4, 8),
            "KIND": self.kind,
            "M": self.mantissa,
            "BIAS": self.bias,
            "NAN": self.nan,
            "SIGNED": self.signed,
        }


def refuses(spec: LayerSpec) -> str:
    """Why these kernels do not run such a layer; empty if they do."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if spec.weight is None:
        return "the weight is not quantized"
    if spec.weight.outer is not None and spec.weight.outer.tile not in ((1, -1), (-1, -1)):
        return "scales of scales are one a row or one for all"
    return ""


def refuses_activation(spec: QuantSpec) -> str:
    """The same for activations that become codes."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return fusion.refuses(spec)


def refuses_cache(spec: CacheSpec) -> str:
    """The same for attention over keys and values in few bits."""
    return "triton is not installed" if find_spec("triton") is None else ""


def refuses_states(spec: CacheSpec) -> str:
    """The same for what puts keys and values on their grid."""
    return refuses_cache(spec) or _refuses_writing(spec.keys) or _refuses_writing(spec.values)


def _refuses_writing(spec: QuantSpec) -> str:
    if spec.format.bits not in (2, 4, 8) or _kind(spec.format) == "table":
        return f"codes of {spec.format} are not packed on the GPU"
    if not spec.scale_format.is_native:
        return f"scales of {spec.scale_format} are not found on the GPU"
    group = spec.tile[1]
    return (
        "" if group == -1 or group & (group - 1) == 0 else f"groups of {group} are no power of two"
    )


@cache
def recipe_of(layer: LayerSpec, eight_bit_floats: bool) -> Recipe:
    """The recipe of a spec, for tensor cores that multiply FP8 or for older ones."""
    spec = layer.weight
    assert spec is not None
    operand: Operand = "float"
    if layer.input is not None and not fusion.refuses(layer.input):
        if layer.input.format.is_integer and _is_int8(spec):
            operand = "int8"
        elif layer.input.format == E4M3 and eight_bit_floats and _is_fp8(spec):
            operand = "fp8"
    fmt, lift = spec.format, _lift(spec) if operand == "fp8" else None
    kind = _kind(fmt)
    table = fmt.values if kind == "table" else None
    coded = not spec.scale_format.is_native
    return Recipe(
        bits=fmt.bits,
        kind=kind,
        mantissa=fmt.mantissa_bits,
        bias=fmt.bias,
        nan=-1 if fmt.nan_code is None else fmt.nan_code,
        signed=fmt.signed,
        table=table,
        short=table is None or _is_short(table),
        scale_table=spec.scale_format.values if coded else None,
        tile_rows=spec.tile[0],
        group=spec.tile[1],
        operand=operand,
        power=1 / fmt.step if operand == "int8" else 2.0 ** (lift or 0),
        exact=lift is not None or (operand == "int8" and _is_progressive(spec)),
    )


def _kind(fmt: Format) -> Kind:
    if fmt.is_integer:
        return "integer"
    # The smallest and the largest numbers are fp16's too, and no code means something else in fp32.
    plain = fmt.signed and not fmt.is_table and fmt.zero and fmt.top != "ieee"
    return "float" if plain and 1 <= fmt.exponent_bits <= 4 else "table"


def _is_short(values: tuple[float, ...]) -> bool:
    wide = torch.tensor(values, dtype=torch.float64)
    return all(bool((wide.to(dtype) == wide).all()) for dtype in (torch.float16, torch.bfloat16))


def _blocks(spec: QuantSpec) -> bool:
    """Whether whole products of 8-bit numbers lie under one scale."""
    return spec.tile[1] == -1 or spec.tile[1] % SHORTEST == 0


def _is_int8(spec: QuantSpec) -> bool:
    fmt = spec.format
    if fmt.is_table or not all(map(math.isfinite, fmt.values)):
        return False
    most = fmt.max if spec.zero_point else max(fmt.max, -fmt.min - fmt.step)
    return _blocks(spec) and most / fmt.step <= 127


def _is_progressive(spec: QuantSpec) -> bool:
    """QoQ's weights: a code less its zero point times its scale is an INT8 (`protected_range`)."""
    return spec.zero_point and spec.outer is not None and spec.scale_format.is_integer


def _is_fp8(spec: QuantSpec) -> bool:
    if spec.format == E4M3:
        return _blocks(spec)
    whole = set(spec.format.values) <= set(E4M3.values) and not spec.zero_point
    return whole and (_blocks(spec) or _lift(spec) is not None)


def _lift(spec: QuantSpec) -> int | None:
    """The power of two that makes every number times every scale an FP8 number, if there is one."""
    fmt = spec.scale_format
    if fmt.is_native or not fmt.is_power_of_two or spec.tile[1] == -1 or spec.zero_point:
        return None
    scales = [value for value in fmt.values if math.isfinite(value)]
    top = math.log2(max(scales)) + math.log2(spec.format.max)
    lift = E4M3.max_exponent - math.floor(top)
    numbers = {math.ldexp(v * s, lift) for v in spec.format.values for s in scales}
    return lift if numbers <= set(E4M3.values) else None
