"""NVIDIA ModelOpt, which vLLM, SGLang, TensorRT-LLM and transformers read: one algorithm a layer.

Source: modelopt 0.47 (`torch/export/unified_export_hf.py`, `convert_hf_config.py`) and vLLM's reader
(`quantization/modelopt.py`). NVFP4's outer scale `weight_scale_2` is a *multiplier*, the reciprocal of
compressed-tensors' global scale; even columns lie in the low nibble, and the metadata says so because
converters of diffusion models disagree. The configuration is written twice, in config.json and in the
legacy hf_quant_config.json, since readers look at one or the other.

FP8 has one scale a tensor and one for the calibrated input, both fp32 scalars. NVFP4's inputs have block
scales of the run under a calibrated one, `input_scale`; it is 1 where our spec has none.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from minifloat.export.contract import (
    Contract,
    Layer,
    Refusal,
    Scheme,
    Shape,
    block_scale,
    multiple,
    no_ragged,
    static_scale,
    weight_of,
)
from minifloat.export.targets import excluded
from minifloat.formats import E2M1, E4M3, E8M0, FP32
from minifloat.packing import pack, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import FP8_TOKEN, LayerSpec, QuantSpec

_NVFP4 = QuantSpec(E2M1, (1, 16), QuantSpec(E4M3, (-1, -1)))
_NVFP4_INPUT = replace(_NVFP4, dynamic=True)
_NVFP4_PLAIN_INPUT = replace(_NVFP4_INPUT, scale=E4M3)
_MXFP8 = QuantSpec(E4M3, (1, 32), E8M0, "ocp")
_CHANNEL, _TENSOR = QuantSpec(E4M3, (1, -1)), QuantSpec(E4M3, (-1, -1))
_NAMES = {
    "NVFP4": ("weight", "weight_scale", "weight_scale_2", "input_scale"),
    "W4A16_NVFP4": ("weight", "weight_scale", "weight_scale_2"),
    "MXFP8": ("weight", "weight_scale"),
    "FP8": ("weight", "weight_scale", "input_scale"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("weight", "weight_scale"),
}
_LAYERS = {
    "NVFP4": LayerSpec(_NVFP4, _NVFP4_INPUT),
    "W4A16_NVFP4": LayerSpec(_NVFP4),
    "MXFP8": LayerSpec(_MXFP8, replace(_MXFP8, dynamic=True)),
    "FP8": LayerSpec(_TENSOR, _TENSOR),
    "FP8_PER_CHANNEL_PER_TOKEN": LayerSpec(_CHANNEL, FP8_TOKEN),
}


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`quant_algo`, and the group size where there is one."""
    weight = replace(weight_of(spec), dynamic=False)
    given = _NVFP4_INPUT if spec.input == _NVFP4_PLAIN_INPUT else spec.input
    no_ragged(weight, shape)
    if weight.scale == E8M0:
        weight = replace(weight, scale_rounding="ocp")  # the rule leaves no trace in the tensors
    if weight.format == E4M3 and weight.scale_format.is_native:
        weight = replace(weight, scale=FP32)  # as it is written
    for algo, known in _LAYERS.items():
        if known == LayerSpec(weight, given):
            if weight.format == E2M1:
                multiple(shape[1], 2, "and two codes share a byte")
            size = {} if weight.tile[1] == -1 else {"group_size": weight.tile[1]}
            return {"quant_algo": algo, **size}
    raise Refusal(
        f"no algorithm has weights {weight} with inputs {given or 'in full precision'}; "
        f"it has {', '.join(_LAYERS)}"
    )


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return _NAMES[scheme["quant_algo"]]


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    q = layer.q
    if q.spec.format == E2M1:
        assert q.scale.outer is not None
        found = {
            "weight": pack(q.codes, 4),
            "weight_scale": q.scale.stored.view(torch.float8_e4m3fn),
            "weight_scale_2": q.scale.outer.reshape(()),
        }
        if "input_scale" in suffixes(scheme):
            found["input_scale"] = block_scale(layer).reshape(())
        return found
    scale = q.scale.stored
    weight = q.codes.contiguous().view(torch.float8_e4m3fn)
    if scheme["quant_algo"] == "MXFP8":
        return {"weight": weight, "weight_scale": scale}
    if scheme["quant_algo"] == "FP8":
        scales = {"weight_scale": scale, "input_scale": static_scale(layer).stored}
        return {"weight": weight, **{name: s.float().reshape(()) for name, s in scales.items()}}
    return {"weight": weight, "weight_scale": scale.float().reshape(-1)}


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`; several algorithms make it MIXED_PRECISION with a map of layers."""
    found: dict[str, Any] = {"quant_method": "modelopt"}
    first = next(iter(schemes.values()))
    if all(scheme == first for scheme in schemes.values()):
        found |= first
    else:
        found |= {"quant_algo": "MIXED_PRECISION", "quantized_layers": schemes}
    found["ignore"] = sorted({*kept, "lm_head"} - set(schemes))
    found["kv_cache_scheme"] = None
    found["nibble_order"] = "even column low"
    return found


def files(config: dict[str, Any]) -> dict[str, Any]:
    """hf_quant_config.json, the legacy twin."""
    keys = ("quant_algo", "group_size", "quantized_layers")
    legacy = {key: config[key] for key in keys if key in config}
    legacy |= {"kv_cache_quant_algo": None, "exclude_modules": config["ignore"]}
    return {"hf_quant_config.json": {"quantization": legacy}}


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors."""
    found: dict[str, Scheme] = {}
    for name, present in layers.items():
        if "weight_scale" not in present or excluded(name, config.get("ignore", [])):
            continue
        row = config
        if config["quant_algo"] == "MIXED_PRECISION":
            row = config["quantized_layers"].get(name, {})
        if "quant_algo" in row:
            found[name] = {k: row[k] for k in ("quant_algo", "group_size") if k in row}
    return found


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors."""
    spec, given = _LAYERS[scheme["quant_algo"]], None
    weight, scale = found["weight"], found["weight_scale"]
    assert spec.weight is not None
    if spec.weight.format == E2M1:
        codes = unpack(weight, 4, weight.shape[1] * 2)
        outer = found["weight_scale_2"].reshape(1, 1)
        stored = Scale(scale.view(torch.uint8), outer)
    else:
        codes = weight.view(torch.uint8)
        stored = Scale(scale if scheme["quant_algo"] == "MXFP8" else scale.reshape(-1, 1))
    if spec.calibrated is not None:
        given = Scale(found["input_scale"].float().reshape(1, 1))
    q = QTensor(codes, stored, spec.weight, (codes.shape[0], codes.shape[1]))
    return Layer(spec, q, given)


MODELOPT = Contract(scheme, tensors, suffixes, config, schemes, read, files)
