"""Packed 4-bit weights on the CPU: the codes are decoded in registers (`native.c`).

For few tokens, as in generation, time is memory traffic, and packed weights are an eighth of fp32's.
Above `FEW` tokens arithmetic rules: the weight is decoded, in C too, and torch multiplies. The library
is built where a C compiler is at hand when minifloat is installed; without it the reference row runs.
"""

import ctypes
import os
import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import unknown
from minifloat.grids import value_table
from minifloat.kernels import reference
from minifloat.kernels.packed import PackedLinear
from minifloat.memory import empty
from minifloat.qtensor import fake_quantize
from minifloat.spec import LayerSpec

# Tokens from which decoding the whole weight for torch's product is faster.
FEW = 16
# Columns that a step of the C loop takes; a group starts on one.
_STEP = 32
_LEVELS = ("plain", "avx2", "avx512")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built."""
    path = Path(__file__).with_name("_native" + (sysconfig.get_config_var("EXT_SUFFIX") or ".so"))
    if not path.is_file():
        return None
    found = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.mf_linear_w4.argtypes = [pointer] * 5 + [integer] * 4 + [ctypes.c_int] * 2
    found.mf_decode_w4.argtypes = [pointer] * 4 + [integer] * 3 + [ctypes.c_int] * 2
    found.mf_decode_w4.restype = None
    return found


@cache
def level() -> int:
    """The instruction set that runs: the best one, or at most that of MINIFLOAT_ISA."""
    lib = library()
    asked = os.environ.get("MINIFLOAT_ISA", _LEVELS[-1])
    if asked not in _LEVELS:
        raise unknown("instruction set in MINIFLOAT_ISA", asked, _LEVELS)
    return 0 if lib is None else int(lib.mf_level(_LEVELS.index(asked)))


def accepts(spec: LayerSpec) -> bool:
    """Four bits, groups along a row that start on a step, no zero point."""
    weight = spec.weight
    if weight is None or library() is None or weight.zero_point or weight.format.bits != 4:
        return False
    rows, columns = weight.tile
    return rows == 1 and (columns == -1 or columns % _STEP == 0)


def linear(x: Tensor, layer: PackedLinear) -> Tensor:
    """As `reference.linear`, up to fp32's rounding."""
    tokens = x.numel() // layer.shape[1]
    if tokens > FEW or x.requires_grad:
        return reference.linear(x, replace(layer, held=decoded(layer)))
    spec = layer.spec
    if spec.input is not None:
        x = fake_quantize(x, spec.input)
    wide = x.reshape(tokens, layer.shape[1]).float()
    y = torch.ops.minifloat.linear_w4(wide, *_operands(layer))
    if layer.low_rank is not None:
        up, down = layer.low_rank
        y = y + (wide @ down.float().T) @ up.float().T
    if layer.bias is not None:
        y = y + layer.bias
    y = y.to(x.dtype).reshape(*x.shape[:-1], layer.shape[0])
    return y if spec.output is None else fake_quantize(y, spec.output)


def decoded(layer: PackedLinear) -> Tensor:
    """The weight [out, in], bit for bit that of `PackedLinear.weight`."""
    if layer.held is not None:
        return layer.held
    w: Tensor = torch.ops.minifloat.decode_w4(*_operands(layer), layer.shape[1])
    return w.to(layer.dtype)


def _operands(layer: PackedLinear) -> tuple[Tensor, Tensor, Tensor, int]:
    """Codes, fp32 scales [out, groups], the format's 16 values and the columns of a group."""
    spec = layer.spec.weight
    assert spec is not None
    group = layer.shape[1] if spec.tile[1] == -1 else spec.tile[1]
    table = value_table(spec.format, layer.codes.device)
    return layer.codes, layer.scale.values(spec), table, group


def _linear_w4(x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, group: int) -> Tensor:
    """x [tokens, in] times packed codes [out, ceil(in / 2)] with scales [out, groups]."""
    lib = library()
    assert lib is not None
    x, codes, scales = x.contiguous(), codes.contiguous(), scales.contiguous()
    y = torch.empty(x.shape[0], codes.shape[0])
    pointers = (tensor.data_ptr() for tensor in (x, codes, scales, table, y))
    sizes = (x.shape[0], codes.shape[0], x.shape[1], group)
    if lib.mf_linear_w4(*pointers, *sizes, level(), torch.get_num_threads()):
        raise MemoryError("no memory for a layer's activations")
    return y


def _linear_w4_shape(x: Tensor, codes: Tensor, scales: Tensor, table: Tensor, group: int) -> Tensor:
    return x.new_empty(x.shape[0], codes.shape[0])


def _decode_w4(codes: Tensor, scales: Tensor, table: Tensor, group: int, columns: int) -> Tensor:
    """The weight [out, columns] of packed codes."""
    lib = library()
    assert lib is not None
    codes, scales = codes.contiguous(), scales.contiguous()
    w = empty((codes.shape[0], columns), torch.float32, codes.device)
    pointers = (tensor.data_ptr() for tensor in (codes, scales, table, w))
    lib.mf_decode_w4(*pointers, codes.shape[0], columns, group, level(), torch.get_num_threads())
    return w


def _decode_w4_shape(
    codes: Tensor, scales: Tensor, table: Tensor, group: int, columns: int
) -> Tensor:
    return scales.new_empty(codes.shape[0], columns)


_OPS = torch.library.Library("minifloat", "FRAGMENT")  # type: ignore[no-untyped-call]
_WEIGHT = "Tensor codes, Tensor scales, Tensor table, int group"
_OPS.define(f"linear_w4(Tensor x, {_WEIGHT}) -> Tensor")  # type: ignore[no-untyped-call]
_OPS.define(f"decode_w4({_WEIGHT}, int columns) -> Tensor")  # type: ignore[no-untyped-call]
for _name, _run, _shape in (
    ("linear_w4", _linear_w4, _linear_w4_shape),
    ("decode_w4", _decode_w4, _decode_w4_shape),
):
    _OPS.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    _OPS.impl(_name, _shape, "Meta")  # type: ignore[no-untyped-call]
