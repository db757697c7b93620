"""The compiled library; without a C compiler at install time there is none.

The files are plain C without Python or torch, so they build in a second and load with ctypes.
"""

import ctypes
import os
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import unknown
from minifloat.kernels.interleave import suits
from minifloat.kernels.native import layer
from minifloat.kernels.native.layer import Formats
from minifloat.spec import LayerSpec

# Of all processors, in the order of `enum level`: each includes those before of its own kind.
LEVELS = ("plain", "neon-dotprod", "avx2", "avx512", "avx512-vnni", "avx512-bf16")
_SIDE_BY_SIDE = LEVELS.index("avx512-vnni")  # has kernels for interleaved rows

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_WEIGHT = [_pointer] * 4  # codes, scales, outer scales, zero points
_SIGNATURES = {
    "mf_level": [_int],
    "mf_linear": [_pointer, _pointer, _int, _pointer, _long, *_WEIGHT]
    + [_pointer] * 2
    + [_long] * 3
    + [_int] * 3,
    "mf_conv2d": [_pointer, _pointer, _int, _pointer, *_WEIGHT]
    + [_pointer] * 2
    + [_long] * 2
    + [_pointer]
    + [_int] * 3,
    "mf_attention": [_pointer] * 3 + [_int] + [_pointer] * 9 + [ctypes.c_float] + [_int] * 2,
    "mf_states": [_pointer] * 2 + [_int] + [_pointer] * 4 + [_int] * 2,
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    path = Path(__file__).with_name("_native" + suffix)
    return load(path) if path.is_file() else None


def load(path: Path) -> ctypes.CDLL:
    """The C files, compiled to a library."""
    found = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    return found


def refuses(spec: LayerSpec) -> str:
    """Why the library does not run such a layer, whatever its activations; empty if it does."""
    if library() is None:
        return "minifloat was installed without a C compiler"
    return "the weight is not quantized" if spec.weight is None else layer.refuses(spec.weight)


@cache
def level() -> int:
    """Index in LEVELS of the instruction set that runs: the best, or at most MINIFLOAT_ISA's."""
    lib = library()
    asked = os.environ.get("MINIFLOAT_ISA", LEVELS[-1])
    if asked not in LEVELS:
        raise unknown("instruction set in MINIFLOAT_ISA", asked, LEVELS)
    return 0 if lib is None else int(lib.mf_level(LEVELS.index(asked)))


def interleaves(spec: LayerSpec, shape: tuple[int, int]) -> bool:
    """Whether the library prefers such a layer's rows side by side (`interleave.py`)."""
    return reads_interleaved() and not refuses(spec) and suits(spec, shape)


def reads_interleaved() -> bool:
    """Whether there are kernels for rows side by side here."""
    return level() >= _SIDE_BY_SIDE


def linear(
    formats: Formats,
    x: Tensor,
    given: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    outer: Tensor | None,
    zeros: Tensor | None,
    interleaved: bool,
    bias: Tensor | None,
) -> Tensor:
    """x [..., in] on its grid times packed codes [out, in]: [..., out].

    Args:
        formats: how to read and round.
        x: fp32 or bf16; the result is of its dtype.
        given: fp32 scales of the activations [tokens or 1, groups], where they are not dynamic.
        codes, scales, outer, zeros: of the weight, as they are stored.
        interleaved: codes, scales and zero points are as `interleave.py` puts them.
        bias: fp32 [out].
    """
    columns, rows = x.shape[-1], codes.shape[0]
    y = x.new_empty((*x.shape[:-1], rows))
    tokens = y.numel() // rows
    x, codes, scales = x.contiguous(), codes.contiguous(), scales.contiguous()
    failed = _function("mf_linear")(
        formats.address,
        x.data_ptr(),
        0 if x.dtype == torch.float32 else 2,
        None if given is None else given.data_ptr(),
        0 if given is None or given.shape[0] == 1 else given.shape[1],
        codes.data_ptr(),
        scales.data_ptr(),
        None if outer is None else outer.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        tokens,
        rows,
        columns,
        interleaved,
        level(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for a layer's activations")
    return y


def conv2d(
    formats: Formats,
    x: Tensor,
    given: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    outer: Tensor | None,
    zeros: Tensor | None,
    interleaved: bool,
    bias: Tensor | None,
    geometry: Sequence[int],
) -> Tensor:
    """The same for x [images, in, height, width] and weights [out, in * kernel].

    Args:
        formats, x, codes, scales, outer, zeros, bias, interleaved: as in `linear`.
        given: one fp32 scale of the activations, or None where a window is a pixel.
        geometry: kernel, stride, padding and dilation, each along the height and the width.
    """
    images, channels, *size = x.shape
    out = result_size(size, geometry)
    y = x.new_empty((images, codes.shape[0], *out))
    if x.stride()[1:] != (size[0] * size[1], size[1], 1):  # images may be apart: a span of channels
        x = x.contiguous()
    window = (ctypes.c_int64 * 14)(channels, *size, *geometry, *out, x.stride(0))
    codes, scales = codes.contiguous(), scales.contiguous()
    failed = _function("mf_conv2d")(
        formats.address,
        x.data_ptr(),
        0 if x.dtype == torch.float32 else 2,
        None if given is None else given.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
        None if outer is None else outer.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        images,
        codes.shape[0],
        ctypes.addressof(window),
        interleaved,
        level(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for a layer's activations")
    return y


def result_size(size: Sequence[int], geometry: Sequence[int]) -> list[int]:
    """Height and width of a convolution's result."""
    kernel, stride, padding, dilation = (geometry[i : i + 2] for i in range(0, 8, 2))
    reach = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    return [reach[i] // stride[i] + 1 for i in (0, 1)]


@cache
def _function(name: str) -> Callable[..., int]:
    function: Callable[..., int] = getattr(library(), name)
    return function
