"""The calls of `linear.c`: products of activations and packed weights."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from minifloat.kernels import native
from minifloat.kernels.native.layer import Formats

_int, _long, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Struct(ctypes.Structure):
    """`layer` of layer.h, field by field."""

    _fields_ = (
        ("how", _pointer),
        ("codes", _pointer),
        ("scales", _pointer),
        ("outer", _pointer),
        ("zeros", _pointer),
        ("bias", _pointer),
        ("rows", _long),
        ("columns", _long),
        ("interleaved", _int),
    )


@lru_cache(maxsize=1 << 14)
def _layer(
    formats: Formats,
    codes: int,
    scales: int,
    outer: int | None,
    zeros: int | None,
    bias: int | None,
    rows: int,
    columns: int,
    interleaved: bool,
) -> tuple[int, _Struct]:
    """The struct of a layer whose tensors lie at these addresses, and its own address.

    ctypes converts every argument in every call; a struct that is found again saves some tenths of a
    microsecond. It holds no tensor, and addresses that come again mean the same to C.
    """
    at = (formats.address, codes, scales, outer, zeros, bias)
    struct = _Struct(*at, rows, columns, interleaved)
    return ctypes.addressof(struct), struct


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
    *lead, columns = x.shape
    rows = codes.shape[0]
    y = x.new_empty((*lead, rows))
    x, codes, scales = x.contiguous(), codes.contiguous(), scales.contiguous()
    at = (codes.data_ptr(), scales.data_ptr(), _address(outer), _address(zeros), _address(bias))
    address, _ = _layer(formats, *at, rows, columns, interleaved)
    failed = native.function("mf_linear")(
        address,
        x.data_ptr(),
        0 if x.dtype == torch.float32 else 2,
        _address(given),
        0 if given is None or given.shape[0] == 1 else given.shape[1],
        y.data_ptr(),
        y.numel() // rows,
        native.level(),
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
    if x.stride()[1:] != (size[0] * size[1], size[1], 1):  # images may be apart: a span of channels
        x = x.contiguous()
    rows, columns = codes.shape[0], channels * geometry[0] * geometry[1]
    out, window, _ = _window(channels, *size, x.stride(0), tuple(geometry))
    y = x.new_empty((images, rows, *out))
    codes, scales = codes.contiguous(), scales.contiguous()
    at = (codes.data_ptr(), scales.data_ptr(), _address(outer), _address(zeros), _address(bias))
    address, _ = _layer(formats, *at, rows, columns, interleaved)
    failed = native.function("mf_conv2d")(
        address,
        x.data_ptr(),
        0 if x.dtype == torch.float32 else 2,
        _address(given),
        y.data_ptr(),
        images,
        window,
        native.level(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for a layer's activations")
    return y


@lru_cache(maxsize=1 << 12)
def _window(
    channels: int, height: int, width: int, apart: int, geometry: tuple[int, ...]
) -> tuple[list[int], int, object]:
    """The result's size, and `window` of tokens.h: its address and itself."""
    out = result_size((height, width), geometry)
    numbers = (_long * 14)(channels, height, width, *geometry, *out, apart)
    return out, ctypes.addressof(numbers), numbers


def result_size(size: Sequence[int], geometry: Sequence[int]) -> list[int]:
    """Height and width of a convolution's result."""
    kernel, stride, padding, dilation = (geometry[i : i + 2] for i in range(0, 8, 2))
    reach = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    return [reach[i] // stride[i] + 1 for i in (0, 1)]


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
