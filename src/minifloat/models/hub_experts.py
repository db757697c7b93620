"""A mixture's experts as files hold them: a tensor for every expert and projection, or all in one.

transformers 5 holds a block's experts in one parameter [experts, out, in], and we, where they are
quantized, as layers `up` (the gate's rows before its own) and `down` (`experts.py`). On the hub gate, up
and down of every expert are tensors of their own in most families.

Source: transformers 5.23 (`conversion_mapping.py`), which turns these names into its own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from minifloat.models.experts import ExpertLayers, fused_experts
from minifloat.shards import Entry, Joined, Place, Slice

_PROJ = ("gate_proj", "up_proj", "down_proj")
# By model type: the hub's names of gate, up and down, and what its blocks are called for ours.
FAMILIES: dict[str, tuple[tuple[str, str, str], tuple[str, str]]] = {
    "mixtral": (("w1", "w3", "w2"), (".mlp.", ".block_sparse_moe.")),
    **dict.fromkeys(
        ("qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "jamba"),
        (_PROJ, ("", "")),
    ),
}


def hub_name(name: str, kind: str) -> str:
    """What the hub calls a tensor of ours, by model type; experts' last parts apart."""
    ours, theirs = FAMILIES[kind][1]
    return name.replace(ours, theirs) if ours else name


def own_places(model: nn.Module, found: Mapping[str, Entry], kind: str) -> dict[str, Place]:
    """Where each of a model's tensors lies in files, experts included, opened ones and fused ones.

    Args:
        model: with or without weights.
        found: the files' tensors.
        kind: model type.
    """
    places: dict[str, Place] = dict(found)
    if kind in FAMILIES:
        ours, theirs = FAMILIES[kind][1]
        places |= {name.replace(theirs, ours): entry for name, entry in found.items() if theirs}
    for name, module in model.named_modules():
        if isinstance(module, ExpertLayers):
            places |= dict(_opened(name, module, found, kind))
    for name in fused_experts(model):
        places |= dict(_fused(name, model.get_submodule(name), found, kind))
    return places


def _opened(
    name: str, experts: ExpertLayers, found: Mapping[str, Entry], kind: str
) -> Iterator[tuple[str, Place]]:
    """An expert's layers: its part of a fused tensor, or the hub's tensors of it."""
    for i in range(len(experts.layers)):
        for part, fused in experts.fused.items():
            layer, whole = f"{name}.layers.{i}.{part}", found.get(f"{name}.{fused}")
            if whole is None:
                rows = _rows(name, i, fused, found, kind)
                if rows:
                    size = sum(row.shape[0] for row in rows)
                    yield f"{layer}.weight", Joined(rows, (size, rows[0].shape[1]))
                continue
            yield f"{layer}.weight", Slice(whole, i, experts.transposed)
            if bias := found.get(f"{name}.{fused}_bias"):
                yield f"{layer}.bias", Slice(bias, i)


def _fused(
    name: str, experts: Any, found: Mapping[str, Entry], kind: str
) -> Iterator[tuple[str, Place]]:
    """A fused tensor that files hold expert by expert."""
    for fused, parameter in experts.named_parameters(recurse=False):
        if f"{name}.{fused}" in found:
            continue
        rows = [_rows(name, i, fused, found, kind) for i in range(len(parameter))]
        if rows and all(rows):
            yield f"{name}.{fused}", Joined(sum(rows, ()), tuple(parameter.shape))


def _rows(
    name: str, index: int, fused: str, found: Mapping[str, Entry], kind: str
) -> tuple[Entry, ...]:
    """The hub's tensors that follow each other in one expert's part of a fused one; none if unknown."""
    if kind not in FAMILIES:
        return ()
    gate, up, down = FAMILIES[kind][0]
    parts = {"gate_up_proj": (gate, up), "up_proj": (up,), "down_proj": (down,)}.get(fused, ())
    names = [f"{hub_name(name, kind)}.{index}.{part}.weight" for part in parts]
    return tuple(found[n] for n in names) if all(n in found for n in names) else ()
