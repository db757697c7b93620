"""The products as ops of torch, with shapes of their own for compilers and meta tensors.

An op is a layer's whole product, its input's grid included. The spec travels as JSON, so that a graph
says in words what it computes, and nothing of it is traced.
"""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minifloat.kernels import native
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.interleave import weight_in_rows
from minifloat.kernels.native import attention as native_attention
from minifloat.kernels.native import products
from minifloat.kernels.native import states as native_states
from minifloat.kernels.native.layer import Formats
from minifloat.kernels.states import States, check_room
from minifloat.qtensor import fake_quantize, input_scale
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_WEIGHT = "Tensor codes, Tensor scale, Tensor? outer, Tensor? zero, Tensor? bias, bool interleaved"
_INPUT = "Tensor? input_scale, Tensor? input_zero, str spec"
# The dtypes that the library reads and writes.
_DTYPES = (torch.float32, torch.bfloat16)


def _linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    outer: Tensor | None,
    zero: Tensor | None,
    bias: Tensor | None,
    interleaved: bool,
    input_scale: Tensor | None,
    input_zero: Tensor | None,
    spec: str,
) -> Tensor:
    """x [..., in] times codes [out, packed]: [..., out], in the dtype of x."""
    layer, formats = _read(spec)
    given = None
    if layer.input is not None and not formats.scales_input:
        static = None if input_scale is None else Scale(input_scale, None, input_zero)
        x, given = _prepared(x, layer, formats, static)
    wide = x if x.dtype in _DTYPES else x.float()
    if unread := interleaved and not native.reads_interleaved():
        codes, scale, outer, zero = _in_rows(layer, codes, scale, outer, zero)
    weight = (codes, scale, outer, zero, interleaved and not unread, _wide(bias))
    y = products.linear(formats, wide, given, *weight)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _in_rows(
    layer: LayerSpec, codes: Tensor, scale: Tensor, outer: Tensor | None, zero: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """An interleaved weight where there are no kernels for it: a copy, in every call."""
    assert layer.weight is not None
    codes, stored = weight_in_rows(codes, Scale(scale, outer, zero), layer.weight)
    return codes, *stored


def _linear_shape(x: Tensor, codes: Tensor, *rest: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _linear_gpu(x: Tensor, *operands: Any) -> Tensor:
    from minifloat.kernels.gpu.linear import linear  # Triton takes a second, and is not everywhere

    return linear(x, *operands)


def _conv2d(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    outer: Tensor | None,
    zero: Tensor | None,
    bias: Tensor | None,
    interleaved: bool,
    input_scale: Tensor | None,
    input_zero: Tensor | None,
    spec: str,
    geometry: list[int],
) -> Tensor:
    """x [images, in, height, width] convolved with codes [out, packed], in the dtype of x."""
    layer, formats = _read(spec)
    static = None if input_scale is None else Scale(input_scale, None, input_zero)
    given = None
    if layer.input is not None and layer.input.tile == (-1, -1):  # the axes' order is all the same
        x, given = _prepared(x, layer, formats, static)
    elif layer.input is not None:
        x = fake_quantize(x.movedim(1, -1), layer.input, static).movedim(-1, 1)
        formats = _weight_only(spec)
    wide = x if x.dtype in _DTYPES else x.float()
    if unread := interleaved and not native.reads_interleaved():
        codes, scale, outer, zero = _in_rows(layer, codes, scale, outer, zero)
    weight = (codes, scale, outer, zero, interleaved and not unread, _wide(bias))
    y = products.conv2d(formats, wide, given, *weight, geometry)
    return y if y.dtype == x.dtype else y.to(x.dtype)


def _conv2d_shape(x: Tensor, codes: Tensor, *rest: object) -> Tensor:
    geometry: list[int] = rest[-1]  # type: ignore[assignment]
    size = products.result_size(x.shape[2:], geometry)
    return x.new_empty((x.shape[0], codes.shape[0], *size))


@cache
def _weight_only(spec: str) -> Formats:
    """For activations that are on their grid already."""
    return Formats(replace(_read(spec)[0], input=None))


@cache
def _read(spec: str) -> tuple[LayerSpec, Formats]:
    layer = LayerSpec.from_json(json.loads(spec))
    return layer, Formats(layer)


def _prepared(
    x: Tensor, layer: LayerSpec, formats: Formats, static: Scale | None
) -> tuple[Tensor, Tensor | None]:
    """Activations and their scales, for grids that the library rounds to; else those on their grid."""
    spec = layer.input
    assert spec is not None
    if not formats.rounds_input:
        return fake_quantize(x, spec, static), None
    if static is None or spec.dynamic:
        static = input_scale(x.reshape(-1, x.shape[-1]).float(), spec, static)
    return x, static.values(spec).contiguous()


def _wide(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.dtype == torch.float32 else bias.float()


def _attention_kv_gpu(query: Tensor, *operands: Any) -> Tensor:
    from minifloat.kernels.gpu.attention import attention_kv

    return attention_kv(query, *operands)


def _attention_kv_shape(query: Tensor, *rest: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], rest[-2]))


def _quantize_gpu(x: Tensor, scale: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    from minifloat.kernels.gpu.activations import quantized

    static = None if scale is None else Scale(scale)
    return quantized(x, _read_input(rest[-1]), static, Fusion(*rest[:-1]))


def _quantize_shape(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.int8 if _read_input(rest[-1]).format.is_integer else torch.float8_e4m3fn
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(len(x), dtype=torch.float32)


def _states(x: Tensor, spec: str) -> list[Tensor]:
    found = States.empty(x, _read_input(spec))
    native_states.put(x, found, 0)
    return found.tensors()


def _states_gpu(x: Tensor, spec: str) -> list[Tensor]:
    from minifloat.kernels.gpu.states import states_of

    return states_of(x, _read_input(spec)).tensors()


def _states_shape(x: Tensor, spec: str) -> list[Tensor]:
    return States.empty(x, _read_input(spec)).tensors()


def _put_states(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, first: Tensor, spec: str
) -> None:
    """Codes of x into the place of some tokens, from the first on: what a compiled step can do."""
    at, room = int(first), States(codes, Scale(scale, None, zero), _read_input(spec), x.shape[-1])
    check_room(at + x.shape[2], room.tokens)
    native_states.put(x, room, at)


@cache
def _read_input(spec: str) -> QuantSpec:
    return QuantSpec.from_json(json.loads(spec))


_LIBRARY = torch.library.Library("minifloat", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"linear(Tensor x, {_WEIGHT}, {_INPUT}) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear", _linear, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear", _linear_gpu, "CUDA")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear", _linear_shape, "Meta")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"conv2d(Tensor x, {_WEIGHT}, {_INPUT}, int[] geometry) -> Tensor"
)
_LIBRARY.impl("conv2d", _conv2d, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("conv2d", _conv2d_shape, "Meta")  # type: ignore[no-untyped-call]
_FUSION = (
    "str kind, float eps, Tensor? weight, Tensor? bias, Tensor? gain, Tensor? shift, Tensor? other"
)
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"quantize_activation(Tensor x, Tensor? scale, {_FUSION}, str spec) -> (Tensor, Tensor)"
)
_LIBRARY.impl("quantize_activation", _quantize_gpu, "CUDA")  # type: ignore[no-untyped-call]
_LIBRARY.impl("quantize_activation", _quantize_shape, "Meta")  # type: ignore[no-untyped-call]
_STATES = ", ".join(f"Tensor {x}, Tensor {x}_scale, Tensor? {x}_zero" for x in ("keys", "values"))
_LIBRARY.define(  # type: ignore[no-untyped-call]
    f"attention_kv(Tensor query, {_STATES}, Tensor? mask, float scaling, int width, str spec) -> Tensor"
)
_LIBRARY.define("states(Tensor x, str spec) -> Tensor[]")  # type: ignore[no-untyped-call]
_LIBRARY.impl("states", _states, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("states", _states_gpu, "CUDA")  # type: ignore[no-untyped-call]
_LIBRARY.impl("states", _states_shape, "Meta")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "put_states(Tensor x, Tensor(a!) codes, Tensor(b!) scale, Tensor(c!)? zero, Tensor first, "
    "str spec) -> ()"
)
_LIBRARY.impl("put_states", _put_states, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("put_states", lambda *operands: None, "Meta")  # type: ignore[no-untyped-call]
_LIBRARY.impl("attention_kv", native_attention.attention_kv, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("attention_kv", _attention_kv_gpu, "CUDA")  # type: ignore[no-untyped-call]
_LIBRARY.impl("attention_kv", _attention_kv_shape, "Meta")  # type: ignore[no-untyped-call]
linear = torch.ops.minifloat.linear.default
conv2d = torch.ops.minifloat.conv2d.default
attention_kv = torch.ops.minifloat.attention_kv.default
quantize_activation = torch.ops.minifloat.quantize_activation.default
states = torch.ops.minifloat.states.default
put_states = torch.ops.minifloat.put_states.default
