"""A layer's formats as the C files see them (`layer.h`): numbers and tables instead of names."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minifloat.formats import E5M2, FP32, Format
from minifloat.grids import fits_half, half_layout
from minifloat.spec import LayerSpec, QuantSpec

KINDS = {"fp32": 0, "fp16": 1, "bf16": 2}
_NONE, CODED = -1, 3
AS_IT_COMES, INTEGERS, FLOATS = range(3)
_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Struct(ctypes.Structure):
    """`formats` of layer.h, field by field."""

    _fields_ = (
        ("bits", _int),
        ("scale_kind", _int),
        ("outer_kind", _int),
        ("outer_by_row", _int),
        ("tile_rows", _long),
        ("tile_columns", _long),
        ("values", _pointer),
        ("scale_values", _pointer),
        ("brains", _pointer),
        ("unit", _float),
        ("bias", _int),
        ("levels", ctypes.c_uint8 * 16),
        ("middle", _int),
        ("half_shift", _int),
        ("half_mask", _int),
        ("half_factor", _float),
        ("input", _int),
        ("input_mantissa", _int),
        ("input_exponent", _int),
        ("input_min", _float),
        ("input_max", _float),
        ("input_columns", _long),
    )


class Formats:
    """The struct of a layer's spec, and the tables that it points to.

    Attributes:
        address: of the struct.
        rounds_input: whether the library puts activations on their grid.
        scales_input: whether it also finds their scales.
    """

    def __init__(self, spec: LayerSpec) -> None:
        assert spec.weight is not None
        self._tables: list[Tensor] = []
        self._struct = _Struct()
        self._weight(spec.weight)
        self.rounds_input = spec.input is not None and _rounds(spec.input)
        self.scales_input = self.rounds_input and _scales(spec.input)
        if spec.input is not None and self.rounds_input:
            self._input(spec.input)
        self.address = ctypes.addressof(self._struct)

    def _weight(self, spec: QuantSpec) -> None:
        s, fmt, outer = self._struct, spec.format, spec.outer
        s.bits, (s.tile_rows, s.tile_columns) = fmt.bits, spec.tile
        s.scale_kind = KINDS.get(spec.scale_format.name, CODED)
        s.outer_kind = _NONE if outer is None else KINDS[outer.scale_format.name]
        s.outer_by_row = outer is not None and outer.tile[0] == 1
        # Zero points are counted from the middle of the codes, so that no two large sums cancel.
        s.middle = 1 << fmt.bits - 1 if spec.zero_point else 0
        values = [value - s.middle for value in fmt.values]
        s.values = self._table(values, torch.float32)
        if s.scale_kind == CODED:
            s.scale_values = self._table(spec.scale_format.values, torch.float32)
        if is_short(fmt):
            s.brains = self._table(values, torch.bfloat16)
        if (found := whole_levels(fmt)) is not None:
            s.unit, s.bias, levels = found
            s.bias += s.middle
            s.levels[: len(levels)] = levels
        if not fmt.is_integer and fmt.bits != 4:
            s.half_shift, mask, s.half_factor = half_layout(fmt)
            s.half_mask = mask & ~((1 << s.half_shift) - 1)  # and nothing of the neighbouring code
        else:
            s.half_factor = 0.25 if fmt.bits == 6 else 1.0  # codes are the upper bits of bytes

    def _input(self, spec: QuantSpec) -> None:
        s, fmt = self._struct, spec.format
        s.input = INTEGERS if fmt.is_integer else FLOATS
        s.input_mantissa, s.input_exponent = fmt.mantissa_bits, fmt.min_exponent
        s.input_min, s.input_max, s.input_columns = fmt.min, fmt.max, spec.tile[1]

    def _table(self, values: Sequence[float], dtype: torch.dtype) -> int:
        table = torch.tensor(values, dtype=torch.float64, device="cpu").to(dtype)
        self._tables.append(table)
        return table.data_ptr()


def whole_levels(fmt: Format) -> tuple[float, int, list[int]] | None:
    """(unit, bias, levels) with values = unit * (levels - bias) and levels of 0 to 255, or None.

    E2M1 is half of -12..12, so its products are integers; so are those of every 4-bit format but NF4,
    and INT8's, whose levels are known without a table.
    """
    if fmt.is_integer and fmt.bits == 8:
        return 1.0, 128, []
    if fmt.bits != 4 or fmt.is_table or not all(map(math.isfinite, fmt.values)):
        return None
    whole = [round(value / fmt.step) for value in fmt.values]
    bias = -min(whole)
    return (fmt.step, bias, [n + bias for n in whole]) if bias + max(whole) <= 255 else None


def is_short(fmt: Format) -> bool:
    """Whether every value is a bf16."""
    values = torch.tensor(fmt.values, dtype=torch.float64)
    return torch.equal(values.bfloat16().double().nan_to_num(), values.nan_to_num())


def refuses(spec: QuantSpec) -> str:
    """Why the library does not read such weights; empty for any 4-bit format, and those of 6 and 8
    bits that are signed integers or fit fp16."""
    fmt, outer = spec.format, spec.outer
    if fmt.bits not in (4, 6, 8):
        return f"codes have {fmt.bits} bits, not 4, 6 or 8"
    if outer is not None and outer.tile not in ((1, -1), (-1, -1)):
        return "scales of scales are one a row or one for all"
    together = 8 if fmt.bits == 4 else 4
    if spec.tile[1] != -1 and spec.tile[1] % together:
        return f"groups are no multiples of {together} columns"
    signed = fmt.is_integer and fmt.signed
    if fmt.bits != 4 and not signed and fmt != E5M2 and not fits_half(fmt):
        return f"{fmt} does not fit fp16"
    return ""


def _rounds(spec: QuantSpec) -> bool:
    fmt = spec.format
    whole = spec.tile[1] == -1 or spec.tile[1] % 8 == 0
    grid = fmt.is_integer or (fmt.mantissa_bits > 0 and not fmt.is_table)
    return grid and fmt.signed and whole and not spec.zero_point


def _scales(spec: QuantSpec | None) -> bool:
    return spec is not None and spec.dynamic and spec.tile[0] == 1 and spec.scale == FP32
