"""Seams of feed-forward branches: from the layer that widens to the layer that narrows.

A gated branch is down(act(gate(x)) * up(x)): a scale of up's channels passes the product, an order has
to move the gate too. Without a gate the activation function lies between, which leaves orders; ReLU
lets positive scales pass.
"""

from typing import Any

from torch import nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import ORDER, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, is_layer, rows

_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_GATED_FUSED = (("gate_up_proj", "down_proj"), ("input_linear", "output_linear"))
_PLAIN = (
    ("fc1", "fc2"),
    ("linear_1", "linear_2"),
    ("linear_fc1", "linear_fc2"),
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
)
_ROUTERS = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")


def feed_forward_part(name: str, module: nn.Module, known: tuple[str, ...] = ()) -> Part | None:
    """The branch of a feed-forward module; None if it does more than is known here.

    `known` names children that belong to another branch, where a block holds the layers itself.
    """
    for gate, up, down in _GATED:
        if _has(module, gate, up, down) and not strangers(module, {gate, up, down, *known}):
            return _gated(name, module, gate, up, down)
    for both, down in _GATED_FUSED:
        if _has(module, both, down) and not strangers(module, {both, down, *known}):
            return _gated_fused(name, module, both, down)
    for up, down in _PLAIN:
        if _has(module, up, down) and not strangers(module, {up, down, *known}):
            same = features(getattr(module, up))[0] == features(getattr(module, down))[1]
            return _plain(name, module, up, down) if same else None
    return None


def experts_part(name: str, module: nn.Module) -> Part | None:
    """The branch of a mixture of experts: router, experts, and an expert that all tokens visit."""
    children = dict(module.named_children())
    router, shared = (
        next((n for n in names if n in children), None) for names in (_ROUTERS, _SHARED)
    )
    experts = children.get("experts")
    if router is None or experts is None:
        return None
    own = {"weight", "bias", "e_score_correction_bias"}
    odd = strangers(module, {router, "experts", str(shared), "shared_expert_gate"})
    if odd or strangers(children[router], own):
        return None
    inner = _experts(f"{name}.experts", experts)
    parts = [inner]
    if shared is not None:
        parts.append(feed_forward_part(f"{name}.{shared}", children[shared]))
    reads = columns(f"{name}.{router}", children[router])
    if "shared_expert_gate" in children:
        reads += columns(f"{name}.shared_expert_gate", children["shared_expert_gate"])
    return joined("mlp", [Part("mlp", reads, ()), *parts])


def joined(kind: str, parts: list[Part | None]) -> Part | None:
    """Several branches as one; None if one of them is not known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Part(
        kind,
        tuple(slot for part in known for slot in part.reads),
        tuple(slot for part in known for slot in part.writes),
        tuple(seam for part in known for seam in part.seams),
    )


def _experts(name: str, experts: Any) -> Part | None:
    """Experts of their own layers, or in the 3-D parameters of transformers 5."""
    if isinstance(experts, nn.ModuleList):
        parts = [feed_forward_part(f"{name}.{i}", expert) for i, expert in enumerate(experts)]
        return joined("mlp", parts)
    names = {"gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"}
    if not hasattr(experts, "gate_up_proj") or strangers(experts, names):
        return None
    transposed = hasattr(experts, "gate_up_proj_bias")  # GPT-OSS: [experts, in, out], pairs
    width = experts.down_proj.shape[1 if transposed else 2]
    count = experts.down_proj.shape[0]
    make = _expert_in_pairs if transposed else _expert
    seams = tuple(make(name, i, width) for i in range(count))
    reads = (Slot(f"{name}.gate_up_proj", 1 if transposed else 2),)
    bias = (Slot(f"{name}.down_proj_bias", 1),) if transposed else ()
    writes = (Slot(f"{name}.down_proj", 2 if transposed else 1), *bias)
    return Part("mlp", reads, writes, seams)


def _expert(name: str, row: int, width: int) -> Seam:
    """Expert `row` of gate_up_proj [experts, 2 * width, in] and down_proj [experts, out, width]."""
    up = Slot(f"{name}.gate_up_proj", 0, start=width, at=(row,))
    gate = Slot(f"{name}.gate_up_proj", 0, at=(row,))
    down = Slot(f"{name}.down_proj", 1, at=(row,))
    return Seam(f"{name}.{row}", "up", width, (up,), (down,), (SCALE, ORDER), (gate,))


def _expert_in_pairs(name: str, row: int, width: int) -> Seam:
    """GPT-OSS: gate and up alternate, and (up + 1) is clamped, so that only orders pass."""
    pairs = (
        Slot(f"{name}.gate_up_proj", 1, unit=2, at=(row,)),
        Slot(f"{name}.gate_up_proj_bias", 0, unit=2, at=(row,)),
    )
    down = Slot(f"{name}.down_proj", 0, at=(row,))
    return Seam(f"{name}.{row}", "up", width, pairs, (down,), (ORDER,))


def _gated(name: str, module: nn.Module, gate: str, up: str, down: str) -> Part:
    layers = {n: (f"{name}.{n}", getattr(module, n)) for n in (gate, up, down)}
    seam = Seam(
        name,
        "up",
        features(layers[up][1])[0],
        rows(*layers[up]),
        columns(*layers[down]),
        (SCALE, ORDER),
        rows(*layers[gate]),
    )
    return Part("mlp", columns(*layers[gate]) + columns(*layers[up]), rows(*layers[down]), (seam,))


def _gated_fused(name: str, module: nn.Module, both: str, down: str) -> Part:
    first, last = (
        (f"{name}.{both}", getattr(module, both)),
        (f"{name}.{down}", getattr(module, down)),
    )
    width = features(last[1])[1]
    up, gate = rows(*first, start=width), rows(*first)
    seam = Seam(name, "up", width, up, columns(*last), (SCALE, ORDER), gate)
    return Part("mlp", columns(*first), rows(*last), (seam,))


def _plain(name: str, module: nn.Module, up: str, down: str) -> Part:
    first, last = (f"{name}.{up}", getattr(module, up)), (f"{name}.{down}", getattr(module, down))
    maps = (SCALE, ORDER) if _is_relu(module) else (ORDER,)
    seam = Seam(name, "up", features(first[1])[0], rows(*first), columns(*last), maps)
    return Part("mlp", columns(*first), rows(*last), (seam,))


def _is_relu(module: nn.Module) -> bool:
    return any(type(child) is nn.ReLU for child in module.children())


def _has(module: nn.Module, *names: str) -> bool:
    found: list[Any] = [getattr(module, name, None) for name in names]
    return all(is_layer(layer) for layer in found)
