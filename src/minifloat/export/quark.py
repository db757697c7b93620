"""AMD Quark's MX layout, the one that vLLM reads 6-bit floats from: E2M1, E2M3 and E3M2 in groups of 32.

Source: quark 0.13's export and vLLM's reader (`quantization/quark/schemes/quark_ocp_mx.py`). Codes lie
lowest bit first: two to a byte, or four in three bytes. Scales are the bytes of E8M0 (bias 127). The
`pack_method` says "order": "reorder" would interleave 4-bit *integers*, and says nothing about floats.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from minifloat.export.contract import (
    Contract,
    Layer,
    Refusal,
    Scheme,
    Shape,
    no_ragged,
    weight_of,
)
from minifloat.export.targets import excluded
from minifloat.formats import E2M1, E2M3, E3M2, E4M3, E8M0
from minifloat.packing import pack, unpack
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_WEIGHTS = {E2M1: "fp4", E2M3: "fp6_e2m3", E3M2: "fp6_e3m2"}
_INPUTS = {**_WEIGHTS, E4M3: "fp8_e4m3"}


def scheme(spec: LayerSpec, shape: Shape) -> Scheme:
    """`weight` and `input_tensors` of a layer's configuration."""
    weight = weight_of(spec)
    no_ragged(weight, shape)
    if weight.format not in _WEIGHTS or weight.tile != (1, 32) or weight.scale != E8M0:
        known = ", ".join(str(fmt) for fmt in _WEIGHTS)
        raise Refusal(f"its weights are {known} in groups of 32 with e8m0 scales, not {weight}")
    given = spec.input
    if given is None:
        return {"weight": _tensor(_WEIGHTS[weight.format], False), "input_tensors": None}
    if given.format not in _INPUTS or given.tile != (1, 32) or given.scale != E8M0:
        known = ", ".join(str(fmt) for fmt in _INPUTS)
        raise Refusal(f"its inputs are {known} in groups of 32 with e8m0 scales, not {given}")
    return {
        "weight": _tensor(_WEIGHTS[weight.format], False),
        "input_tensors": _tensor(_INPUTS[given.format], True),
    }


def _tensor(dtype: str, dynamic: bool) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "is_dynamic": dynamic,
        "qscheme": "per_group",
        "ch_axis": -1,
        "group_size": 32,
        "scale_format": "e8m0",
        "scale_calculation_mode": "even",
        "round_method": "half_even",
        "symmetric": None,
        "scale_type": "float",
        "observer_cls": "PerBlockMXObserver",
    }


def suffixes(scheme: Scheme) -> tuple[str, ...]:
    return "weight", "weight_scale"


def tensors(layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one layer by suffix."""
    q = layer.q
    return {"weight": pack(q.codes, q.spec.format.bits), "weight_scale": q.scale.stored}


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`: the first layer's scheme for all, the others by name."""
    first = next(iter(schemes.values()))
    rest = {name: _whole(scheme) for name, scheme in schemes.items() if scheme != first}
    return {
        "quant_method": "quark",
        "global_quant_config": _whole(first),
        "layer_quant_config": rest,
        "layer_type_quant_config": {},
        "exclude": sorted({*kept, "lm_head"} - set(schemes)),
        "algo_config": None,
        "quant_mode": "eager_mode",
        "export": {
            "kv_cache_group": [],
            "min_kv_scale": 0.0,
            "pack_method": "order",
            "weight_format": "real_quantized",
            "weight_merge_groups": None,
        },
    }


def _whole(scheme: Scheme) -> dict[str, Any]:
    return {**scheme, "output_tensors": None, "bias": None, "target_device": None}


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors."""
    found = {}
    for name, present in layers.items():
        if "weight_scale" in present and not excluded(name, config.get("exclude", [])):
            row = config["layer_quant_config"].get(name, config["global_quant_config"])
            found[name] = {key: row[key] for key in ("weight", "input_tensors")}
    return found


def read(scheme: Scheme, found: dict[str, Tensor]) -> Layer:
    """The layer of these tensors."""
    weight = _spec(scheme["weight"], False)
    given = scheme["input_tensors"]
    spec = LayerSpec(weight, None if given is None else _spec(given, True))
    packed, bits = found["weight"], weight.format.bits
    codes = unpack(packed, bits, packed.shape[1] * 8 // bits)
    shape = codes.shape[0], codes.shape[1]
    return Layer(spec, QTensor(codes, Scale(found["weight_scale"]), weight, shape))


def _spec(row: dict[str, Any], dynamic: bool) -> QuantSpec:
    fmt = {name: fmt for fmt, name in _INPUTS.items()}[row["dtype"]]
    return replace(QuantSpec(fmt, (1, 32), E8M0, "ocp"), dynamic=dynamic)


QUARK = Contract(scheme, tensors, suffixes, config, schemes, read)
