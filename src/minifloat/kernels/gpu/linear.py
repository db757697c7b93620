"""The op `linear` on the GPU: activations to their grid, then one product."""

import json
from functools import cache

import torch
from torch import Tensor

from minifloat.kernels.gpu.activations import quantized
from minifloat.kernels.gpu.device import device_of
from minifloat.kernels.gpu.product import product
from minifloat.kernels.gpu.recipe import recipe_of
from minifloat.kernels.gpu.tile import tile_of
from minifloat.kernels.interleave import weight_in_rows
from minifloat.qtensor import fake_quantize
from minifloat.scales import Scale
from minifloat.spec import LayerSpec

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def linear(
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
    """x [..., in] times codes [out, packed]: [..., out], in the dtype of x; as `reference.linear`."""
    layer, stored = _read(spec), Scale(scale, outer, zero)
    if interleaved:  # which only a layer is that was moved without its knowledge
        assert layer.weight is not None
        codes, stored = weight_in_rows(codes, stored, layer.weight)
    recipe = recipe_of(layer, device_of(x.device)[0])
    static = None if input_scale is None else Scale(input_scale, None, input_zero)
    wide = (x if x.dtype in _DTYPES else x.float()).reshape(-1, x.shape[-1]).contiguous()
    x_scale = None
    if recipe.operand != "float":
        assert layer.input is not None
        wide, x_scale = quantized(wide, layer.input, static)
    elif layer.input is not None:
        wide = fake_quantize(wide, layer.input, static)
    y = multiplied(wide, x_scale, codes, stored, bias, layer, x.dtype)
    return y.reshape(*x.shape[:-1], codes.shape[0])


def multiplied(
    x: Tensor,
    x_scale: Tensor | None,
    codes: Tensor,
    scale: Scale,
    bias: Tensor | None,
    layer: LayerSpec,
    dtype: torch.dtype,
) -> Tensor:
    """The product of activations [tokens, in] that are on their grid: codes and scales, or floats."""
    eight_bit_floats, processors = device_of(x.device)
    recipe = recipe_of(layer, eight_bit_floats)
    tile = tile_of(recipe, len(x), codes.shape[0], x.shape[1], processors)
    weight = scale._replace(stored=scale.stored.contiguous())
    return product(x, x_scale, codes.contiguous(), weight, bias, recipe, tile, dtype)


@cache
def _read(spec: str) -> LayerSpec:
    return LayerSpec.from_json(json.loads(spec))
