"""y = x W^T with packed W on the GPU.

The product is computed as W x^T: weights expand in registers, and tensor cores take their first operand
from there (Hopper's wgmma), the activations from shared memory. Sums are fp32, or int32 under int8
operands; their order depends on the device and the shapes alone.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minifloat.kernels.gpu.decode import load_codes, load_scales, numbers, times, widen
from minifloat.kernels.gpu.device import table_on
from minifloat.kernels.gpu.recipe import LONG, Recipe
from minifloat.kernels.gpu.tile import Tile
from minifloat.scales import Scale


@triton.jit
def kernel(
    x, codes, scales, outer, zeros, table, scale_table, x_scale, bias, y,
    tokens, rows, columns, row_bytes, groups, span, outer_step, x_step,
    BITS: tl.constexpr, WIDE: tl.constexpr, KIND: tl.constexpr, M: tl.constexpr,
    BIAS: tl.constexpr, NAN: tl.constexpr, SIGNED: tl.constexpr, TILE_ROWS: tl.constexpr,
    GROUP: tl.constexpr, SHARE: tl.constexpr, SCALED: tl.constexpr, EXACT: tl.constexpr,
    POWER: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile [ROWS, TOKENS] of the sums over `span` columns; y is [splits, tokens, rows]."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    first = tl.program_id(2) * span
    lines = tl.where(n < rows, n // TILE_ROWS if TILE_ROWS != -1 else 0, 0)[:, None]
    over = 1.0
    if outer is not None:
        over = tl.load(outer + lines * outer_step).to(tl.float32)
    operand: tl.constexpr = x.dtype.element_ty
    whole: tl.constexpr = operand == tl.int8 and SCALED != "block"
    sums: tl.constexpr = tl.int32 if whole else tl.float32
    total = tl.zeros((ROWS, TOKENS), sums)
    for start in range(first, tl.minimum(first + span, columns), COLUMNS):
        k = start + tl.arange(0, COLUMNS)
        seen = (m < tokens)[None, :] & (k < columns)[:, None]
        right = tl.load(x + m.to(tl.int64)[None, :] * columns + k[:, None], seen, 0.0)
        code = load_codes(codes, n, rows, row_bytes, start, BITS, COLUMNS, WIDE)
        w = numbers(code, table, BITS, KIND, M, BIAS, NAN, SIGNED)
        g = (start + tl.arange(0, COLUMNS // SHARE) * SHARE)[None, :] // GROUP
        if zeros is not None:
            zero = tl.load(zeros + lines * groups + g, g < groups, 0)
            w -= widen(zero, SHARE).to(w.dtype)
        if SCALED == "element":
            s = load_scales(scales, scale_table, lines, g, groups)
            w = times(w, s * POWER if EXACT else s * over, SHARE, operand == tl.int8)
        elif KIND != "integer" or operand == tl.float8e4nv:
            w = w.to(tl.float32) * POWER
        w = w.to(operand)
        if SCALED == "block":
            part = tl.dot(w, right, input_precision="ieee")
            s = load_scales(scales, scale_table, lines, g, groups)
            total += part.to(tl.float32) * (s * over)
        elif operand == tl.float8e4nv:  # its tensor cores keep fewer bits of a sum than fp32
            total = tl.dot(w, right, total, max_num_imprecise_acc=COLUMNS)
        else:
            total = tl.dot(w, right, total, input_precision="ieee", out_dtype=sums)
    out = total.to(tl.float32) * (1 / POWER)
    if SCALED == "row":
        out *= load_scales(scales, scale_table, lines, lines * 0, groups) * over
    if EXACT:
        out *= over
    if x_scale is not None:
        out *= tl.load(x_scale + m * x_step, m < tokens, 0)[None, :]
    if bias is not None:
        out += tl.load(bias + n, (n < rows) & (first == 0), 0).to(tl.float32)[:, None]
    to = y + (tl.program_id(2).to(tl.int64) * tokens + m[None, :]) * rows + n[:, None]
    tl.store(to, out.to(y.dtype.element_ty), (m < tokens)[None, :] & (n < rows)[:, None])


def product(
    x: Tensor,
    x_scale: Tensor | None,
    codes: Tensor,
    scale: Scale,
    bias: Tensor | None,
    recipe: Recipe,
    tile: Tile,
    dtype: torch.dtype,
) -> Tensor:
    """x [tokens, columns], in the recipe's operand, times packed codes [rows, bytes]: [tokens, rows].

    Args:
        x: activations; int8 and FP8 ones are codes.
        x_scale: fp32 of the codes, one a token or one for all.
        codes, scale, bias: of the layer, as they are stored.
        recipe, tile: how codes are read, and which piece of the product a program computes.
        dtype: of the result.
    """
    tokens, rows = x.shape[0], codes.shape[0]
    parts = x.new_empty(
        (tile.split, tokens, rows), dtype=dtype if tile.split == 1 else torch.float32
    )
    arguments = arguments_of(x, x_scale, codes, scale, bias, recipe, tile) | {"y": parts}
    grid = (-(-rows // tile.rows), -(-tokens // tile.tokens), tile.split)
    if 0 not in grid:
        kernel[grid](**arguments, num_warps=tile.warps, num_stages=tile.stages)
    return parts[0] if tile.split == 1 else parts.sum(0).to(dtype)


def arguments_of(
    x: Tensor,
    x_scale: Tensor | None,
    codes: Tensor,
    scale: Scale,
    bias: Tensor | None,
    recipe: Recipe,
    tile: Tile,
) -> dict[str, Any]:
    """All that the kernel is called with, but the place of its result."""
    columns = x.shape[1]
    group = LONG if recipe.group == -1 else recipe.group
    steps = -(-columns // (tile.columns * tile.split))
    return {
        "x": x,
        "codes": codes,
        "scales": scale.stored,
        "outer": scale.outer,
        "zeros": scale.zero,
        "table": table_on(recipe.table, x.device),
        "scale_table": table_on(recipe.scale_table, x.device),
        "x_scale": x_scale,
        "bias": bias,
        "tokens": x.shape[0],
        "rows": codes.shape[0],
        "columns": columns,
        "row_bytes": codes.shape[1],
        "groups": scale.stored.shape[1],
        "span": steps * tile.columns,
        "outer_step": int(scale.outer is not None and scale.outer.numel() > 1),
        "x_step": int(x_scale is not None and x_scale.numel() > 1),
        **recipe.reading(codes),
        "TILE_ROWS": recipe.tile_rows,
        "GROUP": group,
        "SHARE": math.gcd(group, tile.columns),
        "SCALED": tile.scaled,
        "EXACT": recipe.exact,
        "POWER": recipe.power,
        "ROWS": tile.rows,
        "TOKENS": tile.tokens,
        "COLUMNS": tile.columns,
    }
