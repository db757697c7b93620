"""The compiled library and its ops; without a C compiler at install time there is none.

The files are plain C without Python or torch, so they build in a second and load with ctypes. torch
sees them as custom ops with shapes of their own, which is what torch.compile and meta tensors need.
"""

import ctypes
import os
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import unknown
from minifloat.memory import empty

LEVELS = ("plain", "avx2", "avx512")

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "mf_level": [_int],
    "mf_linear_w4": [_pointer] * 5 + [_long] * 4 + [_int] * 2,
    "mf_decode_w4": [_pointer] * 4 + [_long] * 3 + [_int] * 2,
    "mf_linear_w8": [_pointer] * 5 + [_long] * 4 + [_int] * 2 + [ctypes.c_float] + [_int] * 2,
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    path = Path(__file__).with_name("_native" + suffix)
    if not path.is_file():
        return None
    found = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    return found


@cache
def level() -> int:
    """Index in LEVELS of the instruction set that runs: the best, or at most MINIFLOAT_ISA's."""
    lib = library()
    asked = os.environ.get("MINIFLOAT_ISA", LEVELS[-1])
    if asked not in LEVELS:
        raise unknown("instruction set in MINIFLOAT_ISA", asked, LEVELS)
    return 0 if lib is None else int(lib.mf_level(LEVELS.index(asked)))


def _call(name: str, tensors: tuple[Tensor, ...], *numbers: float) -> None:
    """Run a C function on contiguous tensors, its result last; the level and threads are added."""
    lib = library()
    assert lib is not None
    pointers = [tensor.data_ptr() for tensor in tensors]
    if getattr(lib, name)(*pointers, *numbers, level(), torch.get_num_threads()):
        raise MemoryError("no memory for a layer's activations")


def _linear_w4(x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, group: int) -> Tensor:
    """x [tokens, in] times codes [out, ceil(in / 2)] with scales [out, groups]: [tokens, out]."""
    y = x.new_empty(x.shape[0], codes.shape[0])
    operands = (x.contiguous(), codes.contiguous(), scales.contiguous(), table, y)
    _call("mf_linear_w4", operands, x.shape[0], codes.shape[0], x.shape[1], group)
    return y


def _linear_w8(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    table: Tensor,
    group: int,
    shift: int,
    mask: int,
    factor: float,
) -> Tensor:
    """x [tokens, in] times codes [out, in] with scales [out, groups]: [tokens, out]."""
    y = x.new_empty(x.shape[0], codes.shape[0])
    operands = (x.contiguous(), codes.contiguous(), scales.contiguous(), table, y)
    sizes = (x.shape[0], codes.shape[0], x.shape[1], group)
    _call("mf_linear_w8", operands, *sizes, shift, mask, factor)
    return y


def _linear_shape(x: Tensor, codes: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


def _decode_w4(codes: Tensor, scales: Tensor, table: Tensor, group: int, columns: int) -> Tensor:
    """The weight [out, columns] of packed codes."""
    w = empty((codes.shape[0], columns), torch.float32, codes.device)
    operands = (codes.contiguous(), scales.contiguous(), table, w)
    _call("mf_decode_w4", operands, codes.shape[0], columns, group)
    return w


def _decode_shape(codes: Tensor, scales: Tensor, table: Tensor, group: int, columns: int) -> Tensor:
    return scales.new_empty(codes.shape[0], columns)


_WEIGHT = "Tensor codes, Tensor scales, Tensor table, int group"
_OPS = (
    (f"linear_w4(Tensor x, {_WEIGHT}) -> Tensor", _linear_w4, _linear_shape),
    (
        f"linear_w8(Tensor x, {_WEIGHT}, int shift, int mask, float factor) -> Tensor",
        _linear_w8,
        _linear_shape,
    ),
    (f"decode_w4({_WEIGHT}, int columns) -> Tensor", _decode_w4, _decode_shape),
)
_FRAGMENT = torch.library.Library("minifloat", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema, _run, _shape in _OPS:
    _name = _schema.partition("(")[0]
    _FRAGMENT.define(_schema)  # type: ignore[no-untyped-call]
    _FRAGMENT.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    _FRAGMENT.impl(_name, _shape, "Meta")  # type: ignore[no-untyped-call]
