"""Packed 4-bit weights on the CPU: the codes are decoded in registers (`native.c`).

For few tokens, as in generation, time is memory traffic, and packed weights are an eighth of fp32's.
Above `FEW` tokens arithmetic rules: the weight is decoded and torch multiplies. The library is built
where a C compiler is at hand when minifloat is installed; without it the reference row runs.
"""

import ctypes
import os
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minifloat.grids import value_table
from minifloat.kernels import reference
from minifloat.kernels.packed import PackedLinear
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
    return found


@cache
def level() -> int:
    """The instruction set that runs: the best one, or at most that of MINIFLOAT_ISA."""
    lib = library()
    asked = os.environ.get("MINIFLOAT_ISA", _LEVELS[-1])
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
        return reference.linear(x, layer)
    spec = layer.spec
    if spec.input is not None:
        x = fake_quantize(x, spec.input)
    assert spec.weight is not None
    group = spec.weight.tile[1] if spec.weight.tile[1] != -1 else layer.shape[1]
    scales = layer.scale.values(spec.weight)
    table = value_table(spec.weight.format, x.device)
    wide = x.reshape(tokens, layer.shape[1]).float()
    y = torch.ops.minifloat.linear_w4(wide, layer.codes, scales, table, group)
    if layer.low_rank is not None:
        up, down = layer.low_rank
        y = y + (wide @ down.float().T) @ up.float().T
    if layer.bias is not None:
        y = y + layer.bias
    y = y.to(x.dtype).reshape(*x.shape[:-1], layer.shape[0])
    return y if spec.output is None else fake_quantize(y, spec.output)


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


_OPS = torch.library.Library("minifloat", "FRAGMENT")  # type: ignore[no-untyped-call]
_SCHEMA = "(Tensor x, Tensor codes, Tensor scales, Tensor table, int group) -> Tensor"
_OPS.define("linear_w4" + _SCHEMA)  # type: ignore[no-untyped-call]
_OPS.impl("linear_w4", _linear_w4, "CPU")  # type: ignore[no-untyped-call]
_OPS.impl("linear_w4", _linear_w4_shape, "Meta")  # type: ignore[no-untyped-call]
