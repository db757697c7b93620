"""The `fp8` method of transformers, vLLM and SGLang: E4M3 in blocks, as DeepSeek publishes its models.

Source: transformers 5.23 (`quantizers/quantizer_finegrained_fp8.py`, `integrations/finegrained_fp8.py`).
`weight_scale_inv` is a *multiplier* in spite of its name. Readers always quantize the inputs too, per
token and as many columns as a block has.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minifloat.export.contract import Contract, Layer, Refusal, Scheme, Shape, weight_of
from minifloat.formats import E4M3, FP32
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """The block's size; one for the whole model."""
    weight = weight_of(spec)
    rows, columns = weight.tile
    if weight.format != E4M3 or rows < 2 or columns < 2 or not weight.scale_format.is_native:
        raise Refusal(f"its weights are e4m3 in blocks such as (128, 128), not {weight}")
    wanted = QuantSpec(E4M3, (1, columns), FP32, dynamic=True)
    if spec.input is None or replace(spec.input, dynamic=True) != wanted:
        raise Refusal(f"its readers quantize every input as {wanted}, not {spec.input}")
    return {"weight_block_size": [rows, columns]}


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return "weight", "weight_scale_inv"


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    q = layer.q
    return {
        "weight": q.codes.contiguous().view(torch.float8_e4m3fn),
        "weight_scale_inv": q.scale.stored.float(),
    }


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`.

    Raises:
        Refusal: two layers have different blocks.
    """
    first = next(iter(schemes.values()))
    if any(scheme != first for scheme in schemes.values()):
        raise Refusal("its layers share one block size")
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        **first,
        "modules_to_not_convert": sorted({*kept, "lm_head"} - set(schemes)),
    }


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors."""
    one = {"weight_block_size": config["weight_block_size"]}
    return {name: one for name, present in layers.items() if "weight_scale_inv" in present}


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors."""
    rows, columns = scheme["weight_block_size"]
    weight = QuantSpec(E4M3, (rows, columns))
    codes, scale = found["weight"].view(torch.uint8), found["weight_scale_inv"]
    q = QTensor(codes, Scale(scale), weight, (codes.shape[0], codes.shape[1]))
    return Layer(LayerSpec(weight, QuantSpec(E4M3, (1, columns), dynamic=True)), q)


HF_FP8 = Contract(scheme, tensors, suffixes, config, schemes, read)
