"""The configuration of a whole model: one group for every distinct scheme."""

from typing import Any

from minifloat.export.contract import Scheme
from minifloat.export.targets import matches


def config(schemes: dict[str, Scheme], kept: list[str]) -> dict[str, Any]:
    """`quantization_config`: one group for every distinct scheme, in the order of the layers."""
    groups: list[tuple[Scheme, list[str]]] = []
    for name, scheme in schemes.items():
        members = next((names for known, names in groups if known == scheme), None)
        if members is None:
            groups.append((scheme, [name]))
        else:
            members.append(name)
    mixed = len({scheme["format"] for scheme, _ in groups}) > 1
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision" if mixed else groups[0][0]["format"],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted({*kept, "lm_head"} - set(schemes)),
        "config_groups": {
            f"group_{i}": {
                "targets": ["Linear"] if len(groups) == 1 else names,
                "output_activations": None,
                **scheme,
            }
            for i, (scheme, names) in enumerate(groups)
        },
    }


def schemes(config: dict[str, Any], layers: dict[str, set[str]]) -> dict[str, Scheme]:
    """The scheme of every layer that has quantized tensors, by the groups' targets."""
    found = {}
    for name, present in layers.items():
        if "weight_scale" not in present:
            continue
        for group in config["config_groups"].values():
            if any(matches(name, target) for target in group["targets"]):
                keys = ("format", "weights", "input_activations")
                found[name] = {key: group.get(key) for key in keys}
                found[name]["format"] = found[name]["format"] or config["format"]
                break
    return found
