"""Attention of one new token over keys and values in few bits, which are decoded in registers.

A program has one head of the keys, the queries that share it (GQA) and a span of the tokens; it reads
every code once. Sums over the spans are put together in a fixed order, so that results depend on the
shapes and the device alone. Where a token has one scale, codes are all that tensor cores see: a key's
scale and zero point come to its product, (q k - z sum(q)) s, and a value's to its weight.

QServe (arXiv 2405.04532) gives each query head a program of its own, which reads the keys once more for
every head of a group; here the heads of a group are the rows of one product.
"""

import json
import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minifloat.kernels.gpu.decode import load_codes, load_scales, numbers, widen
from minifloat.kernels.gpu.device import device_of, table_on
from minifloat.kernels.gpu.recipe import LONG, recipe_of
from minifloat.spec import CacheSpec, LayerSpec, QuantSpec

# Tokens of a step, the least rows that tensor cores take, programs that keep a processor busy.
_TOKENS, _ROWS, _PROGRAMS = 64, 16, 4


@triton.jit
def load_states(
    codes, scales, zeros, table, scale_table, t, tokens, row_bytes, groups, operand: tl.constexpr,
    BITS: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr, M: tl.constexpr,
    BIAS: tl.constexpr, NAN: tl.constexpr, SIGNED: tl.constexpr, GROUP: tl.constexpr,
    SHARE: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Keys or values [t, WIDTH] as `operand`, and the tokens' scales and zero points still to come."""
    code = load_codes(codes, t, tokens, row_bytes, 0, BITS, WIDTH, WIDE)
    x = numbers(code, table, BITS, KIND, M, BIAS, NAN, SIGNED)
    token = tl.where(t < tokens, t, 0)
    s = tl.full(t.shape, 1.0, tl.float32)
    z = tl.full(t.shape, 0.0, tl.float32)
    if WHOLE:
        s = load_scales(scales, scale_table, token, 0, groups)
        if zeros is not None:
            z = tl.load(zeros + token).to(tl.float32)
    else:
        line = token[:, None]
        g = (tl.arange(0, WIDTH // SHARE) * SHARE)[None, :] // GROUP
        if zeros is not None:
            x -= widen(tl.load(zeros + line * groups + g, g < groups, 0), SHARE).to(x.dtype)
        x = x.to(tl.float32)
        x *= widen(load_scales(scales, scale_table, line, g, groups), SHARE)
    return x.to(tl.float32).to(operand), s, z


@triton.jit(do_not_specialize=["tokens", "mask_batch"])  # they change with every token
def kernel(
    query, mask, sums, peaks, weights,
    k_codes, k_scales, k_zeros, k_table, k_scale_table, k_bytes, k_groups,
    k_batch, k_head, k_scale_batch, k_scale_head,
    v_codes, v_scales, v_zeros, v_table, v_scale_table, v_bytes, v_groups,
    v_batch, v_head, v_scale_batch, v_scale_head,
    heads, shared, tokens, span, mask_batch, k_width, v_width, scaling,
    K_BITS: tl.constexpr, K_WIDE: tl.constexpr, K_KIND: tl.constexpr, K_M: tl.constexpr,
    K_BIAS: tl.constexpr, K_NAN: tl.constexpr, K_SIGNED: tl.constexpr, K_GROUP: tl.constexpr,
    K_SHARE: tl.constexpr, K_WHOLE: tl.constexpr, K_WIDTH: tl.constexpr,
    V_BITS: tl.constexpr, V_WIDE: tl.constexpr, V_KIND: tl.constexpr, V_M: tl.constexpr,
    V_BIAS: tl.constexpr, V_NAN: tl.constexpr, V_SIGNED: tl.constexpr, V_GROUP: tl.constexpr,
    V_SHARE: tl.constexpr, V_WHOLE: tl.constexpr, V_WIDTH: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One span of the tokens for the `shared` queries of a head: their sums, peaks and weights."""
    batch, head = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    k_codes += batch * k_batch + head * k_head
    k_scales += batch * k_scale_batch + head * k_scale_head
    v_codes += batch * v_batch + head * v_head
    v_scales += batch * v_scale_batch + head * v_scale_head
    if k_zeros is not None:
        k_zeros += batch * k_scale_batch + head * k_scale_head
    if v_zeros is not None:
        v_zeros += batch * v_scale_batch + head * v_scale_head
    row, d = tl.arange(0, ROWS), tl.arange(0, K_WIDTH)
    line = tl.program_id(0).to(tl.int64) * shared + row
    inside = (row < shared)[:, None]
    q = tl.load(query + line[:, None] * k_width + d[None, :], inside & (d < k_width)[None, :], 0.0)
    whole = tl.sum(q.to(tl.float32), 1)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, V_WIDTH), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, tokens), TOKENS):
        t = start + tl.arange(0, TOKENS)
        k, scale, zero = load_states(
            k_codes, k_scales, k_zeros, k_table, k_scale_table, t, tokens, k_bytes, k_groups,
            q.dtype, K_BITS, K_WIDE, K_KIND, K_M, K_BIAS, K_NAN, K_SIGNED, K_GROUP,
            K_SHARE, K_WHOLE, K_WIDTH,
        )  # fmt: skip
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
        if K_WHOLE:
            product = (product - whole[:, None] * zero[None, :]) * scale[None, :]
        product *= scaling
        seen = t < tokens
        if mask is not None:
            seen = seen & (tl.load(mask + batch * mask_batch + t, seen, 0) != 0)
        product = tl.where(seen[None, :], product, float("-inf"))
        above = tl.maximum(peak, tl.max(product, 1))
        level = tl.where(above == float("-inf"), 0.0, above)  # nothing was seen yet
        p = tl.exp(product - level[:, None])
        less = tl.exp(peak - level)
        v, scale, zero = load_states(
            v_codes, v_scales, v_zeros, v_table, v_scale_table, t, tokens, v_bytes, v_groups,
            q.dtype, V_BITS, V_WIDE, V_KIND, V_M, V_BIAS, V_NAN, V_SIGNED, V_GROUP,
            V_SHARE, V_WHOLE, V_WIDTH,
        )  # fmt: skip
        weight = weight * less + tl.sum(p, 1)
        p = (p * scale[None, :]).to(q.dtype)
        total = tl.dot(p, v, total * less[:, None], input_precision="ieee")
        if V_WHOLE:
            total -= tl.sum(p.to(tl.float32) * zero[None, :], 1)[:, None]
        peak = above
    at = tl.program_id(1).to(tl.int64) * tl.num_programs(0) * shared + line
    d = tl.arange(0, V_WIDTH)
    tl.store(peaks + at, peak, row < shared)
    tl.store(weights + at, weight, row < shared)
    tl.store(sums + at[:, None] * v_width + d[None, :], total, inside & (d < v_width)[None, :])


@triton.jit(do_not_specialize=["spans"])
def together(sums, peaks, weights, y, spans, lines, width, WIDTH: tl.constexpr):
    """One query's sums over the spans, in their order, over its weights."""
    line = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, WIDTH)
    peak = float("-inf")
    for i in range(spans):
        peak = tl.maximum(peak, tl.load(peaks + i * lines + line))
    weight = 0.0
    total = tl.zeros((WIDTH,), tl.float32)
    for i in range(spans):
        less = tl.exp(tl.load(peaks + i * lines + line) - peak)
        weight += tl.load(weights + i * lines + line) * less
        total += tl.load(sums + (i * lines + line) * width + d, d < width, 0.0) * less
    tl.store(y + line * width + d, (total / weight).to(y.dtype.element_ty), d < width)


class Stored(NamedTuple):
    """Keys or values as the op gets them; see `kernels.states.States`."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    spec: QuantSpec
    width: int

    def arguments(self, letter: str) -> dict[str, Any]:
        """What the kernel is told of them."""
        recipe = recipe_of(LayerSpec(self.spec), False)
        width = triton.next_power_of_2(max(16, self.width))
        group = LONG if not 0 < recipe.group < self.width else recipe.group
        device = self.codes.device
        tensors = {
            "codes": self.codes,
            "scales": self.scale,
            "zeros": self.zero,
            "table": table_on(recipe.table, device),
            "scale_table": table_on(recipe.scale_table, device),
            "bytes": self.codes.shape[3],
            "groups": self.scale.shape[3],
            "batch": self.codes.stride(0),
            "head": self.codes.stride(1),
            "scale_batch": self.scale.stride(0),
            "scale_head": self.scale.stride(1),
            "width": self.width,
        }
        constants = {
            **recipe.reading(self.codes),
            "GROUP": group,
            "SHARE": math.gcd(group, width),
            "WHOLE": group == LONG and recipe.short,
            "WIDTH": width,
        }
        return {f"{letter}_{name}": value for name, value in tensors.items()} | {
            f"{letter.upper()}_{name}": value for name, value in constants.items()
        }


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
    """As `reference.attention_kv` for one query: [batch, heads, 1, width] of the values."""
    cache = _read(spec)
    k = Stored(keys, keys_scale, keys_zero, cache.keys, query.shape[3])
    v = Stored(values, values_scale, values_zero, cache.values, width)
    batch, heads, _, _ = query.shape
    y = query.new_empty((batch, heads, 1, width))
    spans = _spans(keys.shape[2], batch * keys.shape[1], device_of(query.device)[1])
    arguments = arguments_of(query.contiguous(), k, v, mask, scaling, spans)
    kernel[(batch * keys.shape[1], spans)](**arguments, num_warps=4, num_stages=2)
    parts = (arguments["sums"], arguments["peaks"], arguments["weights"])
    wide = triton.next_power_of_2(width)
    together[(batch * heads,)](*parts, y, spans, batch * heads, width, wide, num_warps=2)
    return y


def arguments_of(
    query: Tensor, k: Stored, v: Stored, mask: Tensor | None, scaling: float, spans: int
) -> dict[str, Any]:
    """All that the kernel is called with."""
    batch, heads, _, _ = query.shape
    tokens, shared = k.codes.shape[2], heads // k.codes.shape[1]
    sums = query.new_empty((spans, batch * heads, v.width), dtype=torch.float32)
    return {
        "query": query,
        "mask": None if mask is None else mask.contiguous().view(torch.uint8),
        "sums": sums,
        "peaks": sums.new_empty(sums.shape[:2]),
        "weights": sums.new_empty(sums.shape[:2]),
        "heads": k.codes.shape[1],
        "shared": shared,
        "tokens": tokens,
        "span": -(-tokens // (spans * _TOKENS)) * _TOKENS,
        "mask_batch": tokens,
        "scaling": scaling,
        "ROWS": max(_ROWS, triton.next_power_of_2(shared)),
        "TOKENS": _TOKENS,
        **k.arguments("k"),
        **v.arguments("v"),
    }


def _spans(tokens: int, heads: int, processors: int) -> int:
    """How many programs share a head's tokens; each has some."""
    steps = -(-tokens // _TOKENS)
    asked = max(1, min(steps // 2, _PROGRAMS * processors // heads))
    return -(-steps // -(-steps // asked))


@cache
def _read(spec: str) -> CacheSpec:
    return CacheSpec.from_json(json.loads(spec))
