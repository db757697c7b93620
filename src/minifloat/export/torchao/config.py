"""Where torchao's readers find the schemes: in the files' headers, tensor by tensor."""

import json
from collections import Counter
from typing import Any

import torch

from minifloat.export.contract import Scheme
from minifloat.export.torchao.scheme import dtype, named

# The attribute that says the dtype of the decoded weight, which is the model's.
_DTYPE = {"NVFP4Tensor": "orig_dtype", "MXTensor": "orig_dtype"}
_PLAIN = {"_type": "Tensor"}


def header(schemes: dict[str, Scheme], plain: dict[str, torch.dtype]) -> dict[str, str]:
    """The class and attributes of every weight, and the names of all tensors."""
    floats = Counter(kind for kind in plain.values() if kind.is_floating_point)
    model = floats.most_common(1)[0][0] if floats else torch.float32
    rows: dict[str, Scheme] = dict.fromkeys(plain, _PLAIN)
    for name, scheme in schemes.items():
        key = _DTYPE.get(scheme["_type"], "dtype")
        kind = dtype(str(model).removeprefix("torch."))
        rows[f"{name}.weight"] = {**scheme, "_data": {**scheme["_data"], key: kind}}
    found = {name: json.dumps(row) for name, row in sorted(rows.items())}
    return {**found, "tensor_names": json.dumps(sorted(rows))}


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer whose weight is taken to pieces."""
    found = {}
    for name, present in layers.items():
        if "_weight_qdata" in present:
            row = json.loads(config["header"][f"{name}.weight"])
            row["_data"].pop(_DTYPE.get(row["_type"], "dtype"), None)
            found[name] = row
    return found


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`: how torchao itself would have made such weights, which readers parse."""
    makers = {name: _maker(scheme) for name, scheme in schemes.items()}
    first = next(iter(makers.values()))
    if any(maker != first for maker in makers.values()):
        first = _config("FqnToConfig", 1, fqn_to_config=makers)
    return {
        "quant_method": "torchao",
        "quant_type": {"default": first},
        "modules_to_not_convert": sorted({*kept, "lm_head"} - set(schemes)),
    }


def _maker(scheme: Scheme) -> Scheme:
    """The configuration of torchao that leads to this class."""
    data, kind = scheme["_data"], scheme["_type"]
    act = data.get("act_quant_kwargs")
    if kind == "Int8Tensor":
        name = "Int8WeightOnlyConfig" if act is None else "Int8DynamicActivationInt8WeightConfig"
        return _config(name, 2)
    if kind == "Float8Tensor" and act is None:
        return _config("Float8WeightOnlyConfig", 2)
    if kind == "Float8Tensor":
        one = {**act["_data"]["granularity"], "_version": 1}
        return _config("Float8DynamicActivationFloat8WeightConfig", 2, granularity=[one, one])
    if kind == "NVFP4Tensor":
        return _config("NVFP4WeightOnlyConfig", 1)
    if kind == "MXTensor":
        element = data["elem_dtype"]
        dtypes = {"activation_dtype": element, "weight_dtype": element}
        return _config("MXDynamicActivationMXWeightConfig", 1, **dtypes)
    return _config("IntxWeightOnlyConfig", 2, weight_dtype=data["target_dtype"])


def _config(name: str, version: int, **data: Any) -> Scheme:
    return {**named(name, data), "_version": version}
