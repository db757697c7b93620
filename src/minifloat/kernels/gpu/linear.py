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
    input_scale: Tensor | None,
    input_zero: Tensor | None,
    spec: str,
) -> Tensor:
    """x [..., in] times codes [out, packed]: [..., out], in the dtype of x; as `reference.linear`."""
    layer = _read(spec)
    eight_bit_floats, processors = device_of(x.device)
    recipe = recipe_of(layer, eight_bit_floats)
    static = None if input_scale is None else Scale(input_scale, None, input_zero)
    wide = (x if x.dtype in _DTYPES else x.float()).reshape(-1, x.shape[-1]).contiguous()
    x_scale = None
    if recipe.operand != "float":
        assert layer.input is not None
        wide, x_scale = quantized(wide, layer.input, static)
    elif layer.input is not None:
        wide = fake_quantize(wide, layer.input, static)
    tile = tile_of(recipe, len(wide), codes.shape[0], wide.shape[1], processors)
    weight = Scale(scale.contiguous(), outer, zero)
    y = product(wide, x_scale, codes.contiguous(), weight, bias, recipe, tile, x.dtype)
    return y.reshape(*x.shape[:-1], codes.shape[0])


@cache
def _read(spec: str) -> LayerSpec:
    return LayerSpec.from_json(json.loads(spec))
