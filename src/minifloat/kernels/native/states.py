"""Keys and values to codes: a spec as `states.c` sees it, the call, and what is refused."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from minifloat.formats import Format
from minifloat.kernels import native
from minifloat.kernels.native.layer import CODED, KINDS
from minifloat.kernels.states import States
from minifloat.spec import CacheSpec, QuantSpec

_DIRECTIONS = ("nearest", "up", "down", "ocp")
_HALF_NAN, _BRAIN_NAN = 0x7E00, 0x7FC0
_int, _long = ctypes.c_int32, ctypes.c_int64
_float, _double, _pointer = ctypes.c_float, ctypes.c_double, ctypes.c_void_p


class _Struct(ctypes.Structure):
    """`grid` of states.c, field by field."""

    _fields_ = (
        ("bits", _int),
        ("integer", _int),
        ("mantissa", _int),
        ("exponent", _int),
        ("min", _float),
        ("max", _float),
        ("top_exponent", _int),
        ("asymmetric", _int),
        ("group", _long),
        ("scale_kind", _int),
        ("scale_mantissa", _int),
        ("scale_exponent", _int),
        ("scale_power", _int),
        ("direction", _int),
        ("scale_nan", _int),
        ("scale_min", _double),
        ("scale_max", _double),
        ("scale_values", _pointer),
    )


class Grid:
    """The struct of a spec, and the table that it points to."""

    def __init__(self, spec: QuantSpec) -> None:
        fmt, scale = spec.format, spec.scale_format
        values = torch.tensor(scale.values, dtype=torch.float64, device="cpu").float()
        self._values = values
        self._struct = _Struct(
            bits=fmt.bits,
            integer=fmt.is_integer,
            mantissa=fmt.mantissa_bits,
            exponent=fmt.min_exponent,
            min=fmt.min,
            max=fmt.max,
            top_exponent=fmt.max_exponent,
            asymmetric=spec.zero_point,
            group=spec.tile[1],
            scale_kind=KINDS.get(scale.name, CODED),
            scale_mantissa=scale.mantissa_bits,
            scale_exponent=scale.min_exponent,
            scale_power=scale.is_power_of_two,
            direction=_DIRECTIONS.index(spec.scale_rounding),
            scale_nan=_nan(scale),
            scale_min=_least(scale),
            scale_max=scale.max,
            scale_values=values.data_ptr(),
        )
        self.address = ctypes.addressof(self._struct)


def _least(scale: Format) -> float:
    """The least scale that is kept (see `scales.fit`)."""
    if scale.is_native or scale.is_power_of_two:
        return float(2.0**scale.min_exponent)
    return scale.step


def _nan(scale: Format) -> int:
    """How a 16-bit or coded scale says NaN."""
    if scale.is_native:
        return _HALF_NAN if scale.name == "fp16" else _BRAIN_NAN
    assert scale.nan_code is not None
    return scale.nan_code


def refuses(spec: CacheSpec) -> str:
    """Why the library does not put such keys and values on their grid; empty if it does."""
    if native.library() is None:
        return "minifloat was installed without a C compiler"
    return _refuses_writing(spec.keys) or _refuses_writing(spec.values)


def _refuses_writing(spec: QuantSpec) -> str:
    fmt, scale = spec.format, spec.scale_format
    if fmt.bits not in (4, 8):
        return f"codes have {fmt.bits} bits, not 4 or 8"
    if not fmt.is_integer and (fmt.is_table or fmt.mantissa_bits == 0 or not fmt.signed):
        return f"numbers are not rounded to {fmt} in C"
    if scale.is_native or (scale.nan_code is not None and not scale.is_integer):
        return ""
    return f"scales of {scale} are not found in C"


def put(x: Tensor, room: States, first: int) -> None:
    """As `reference.put_states`, to the bit; NaN and Inf become NaN in place of an error."""
    library, (codes, scale, zero) = native.library(), (room.codes, room.scale[0], room.scale[2])
    assert library is not None
    at, groups = codes.stride(), scale.stride()
    assert at[2:] == (codes.shape[3], 1) and groups[2:] == (scale.shape[3], 1), "tokens follow"
    if x.dtype not in (torch.float32, torch.bfloat16):
        x = x.float()
    x = x.contiguous()
    failed = library.mf_states(
        _grid(room.spec).address,
        x.data_ptr(),
        0 if x.dtype == torch.float32 else 2,
        codes.data_ptr(),
        scale.data_ptr(),
        None if zero is None else zero.data_ptr(),
        (_long * 9)(*x.shape, first, *at[:2], *groups[:2]),
        native.level(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for a token's codes")


@cache
def _grid(spec: QuantSpec) -> Grid:
    return Grid(spec)
