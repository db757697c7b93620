"""SDNQ's configuration: the first layer's scheme for all, the others by name."""

from typing import Any

from minifloat.export.contract import Scheme

_OWN = ("weights_dtype", "group_size", "scale_dtype", "use_svd", "svd_rank")


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`. A key that begins with a dot is a prefix of names."""
    rows = {name: {key: scheme[key] for key in _OWN} for name, scheme in schemes.items()}
    first = next(iter(rows.values()))
    return {
        "quant_method": "sdnq",
        "sdnq_version": "0.2.8",
        **first,
        "dequantize_fp32": True,
        "use_quantized_matmul": False,
        "quant_conv": any(len(scheme["shape"]) > 2 for scheme in schemes.values()),
        "add_skip_keys": False,
        "modules_to_not_convert": [f"{name}.weight" for name in sorted({*kept, "lm_head"})],
        "modules_quant_config": {f".{n}.": row for n, row in rows.items() if row != first},
        "minifloat": {"shapes": {name: scheme["shape"] for name, scheme in schemes.items()}},
    }


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer whose shape is noted."""
    shapes = config.get("minifloat", {}).get("shapes", {})
    other = config.get("modules_quant_config", {})
    found = {}
    for name, present in layers.items():
        if "scale" in present and name in shapes:
            row = other.get(f".{name}.", config)
            found[name] = {**{key: row[key] for key in _OWN}, "shape": shapes[name]}
    return found
