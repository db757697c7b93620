"""Attention over keys and values in few bits: the call of `attention.c`, and what it refuses."""

import ctypes
import json
from functools import cache

import torch
from torch import Tensor

from minifloat.kernels import native
from minifloat.kernels.native import layer
from minifloat.kernels.native.layer import Formats
from minifloat.spec import CacheSpec, LayerSpec, QuantSpec

_DTYPES = (torch.float32, torch.bfloat16)


def refuses(spec: CacheSpec) -> str:
    """Why the library does not attend to such keys and values; empty if it does."""
    if native.library() is None:
        return "minifloat was installed without a C compiler"
    return _refuses_reading(spec.keys) or _refuses_reading(spec.values)


def _refuses_reading(spec: QuantSpec) -> str:
    bits = spec.format.bits
    return f"codes have {bits} bits, not 4 or 8" if bits == 6 else layer.refuses(spec)


def attention_kv(
    query: Tensor,
    keys: Tensor,
    keys_scale: Tensor,
    keys_zero: Tensor | None,
    values: Tensor,
    values_scale: Tensor,
    values_zero: Tensor | None,
    mask: Tensor | None,
    scaling: float,
    width: int,
    spec: str,
) -> Tensor:
    """As `reference.attention_kv`: [batch, heads, queries, width] of the values.

    A query that sees nothing gets zeros, as torch has it.
    """
    if query.dtype not in _DTYPES:
        rest = (keys, keys_scale, keys_zero, values, values_scale, values_zero, mask)
        return attention_kv(query.float(), *rest, scaling, width, spec).to(query.dtype)
    library, formats = native.library(), _read(spec)
    assert library is not None
    batch, heads, queries, features = query.shape
    k, k_strides = _lying(keys, keys_scale, keys_zero)
    v, v_strides = _lying(values, values_scale, values_zero)
    shared, tokens = heads // keys.shape[1] * queries, keys.shape[2]
    sizes = (batch, keys.shape[1], shared, tokens, features, *k_strides, width, *v_strides)
    query = query.contiguous()
    seen = None if mask is None else mask.contiguous()
    y = query.new_empty((batch, heads, queries, width))
    failed = library.mf_attention(
        formats[0].address,
        formats[1].address,
        query.data_ptr(),
        0 if query.dtype == torch.float32 else 2,
        *(_address(part) for part in (*k, *v, seen)),
        y.data_ptr(),
        (ctypes.c_int64 * 14)(*sizes),
        scaling,
        native.level(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for attention's sums")
    return y


def _lying(*of: Tensor | None) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
    """Codes, scales and zero points whose tokens follow each other, and how far it is from a batch
    and a head to the next: in bytes of codes, and in scales."""
    codes, scale, zero = of
    assert codes is not None and scale is not None
    at, groups = codes.stride(), scale.stride()
    follow = at[2:] == (codes.shape[3], 1) and groups[2:] == (scale.shape[3], 1)
    if follow and (zero is None or zero.stride() == groups):
        return of, (*at[:2], *groups[:2])
    whole = torch.contiguous_format
    return _lying(*(part if part is None else part.clone(memory_format=whole) for part in of))


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@cache
def _read(spec: str) -> tuple[Formats, Formats]:
    found = CacheSpec.from_json(json.loads(spec))
    return Formats(LayerSpec(found.keys)), Formats(LayerSpec(found.values))
