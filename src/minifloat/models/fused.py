"""Layers that serving engines compute as one: they must share a scheme, and one outer scale.

vLLM and SGLang stack q, k and v, and gate and up, into one matrix (the `packed_modules_mapping` of
their model files). Shards of different schemes are refused there; NVFP4 shards with outer scales of
their own load with a warning, and all but one are then scaled wrongly.
"""

from collections.abc import Iterable

FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
}


def fused_groups(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The layers that are computed as one, two or more, by the name of the whole."""
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(names):
        parent, dot, leaf = name.rpartition(".")
        for whole, leaves in FUSED.items():
            if leaf in leaves:
                key = parent + dot + whole
                found[key] = (*found.get(key, ()), name)
    return {key: members for key, members in found.items() if len(members) > 1}
