"""Seams of mixtures of experts: each expert by itself, the router and all experts behind one norm.

Experts lie in 3-D parameters (transformers 5), in the layers that `experts.py` makes of them, or in
feed-forward modules of their own. What the fused module says of itself tells what cancels.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from minifloat.models.experts import ExpertLayers
from minifloat.models.feed_forward import feed_forward_part
from minifloat.models.part import Part, strangers
from minifloat.models.seam import ORDER, SCALE, Seam, Slot
from minifloat.models.slots import columns, rows

_ROUTERS = ("gate", "router")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_ROUTER_PARAMETERS = {"weight", "bias", "e_score_correction_bias"}
_FUSED_PARAMETERS = {"gate_up_proj", "up_proj", "down_proj"}
_FUSED_PARAMETERS |= {f"{name}_bias" for name in _FUSED_PARAMETERS}


def experts_part(name: str, module: nn.Module) -> Part | None:
    """The branch of a mixture of experts; None if it does more than is known here."""
    children = dict(module.named_children())
    router, shared = (
        next((n for n in names if n in children), None) for names in (_ROUTERS, _SHARED)
    )
    if router is None or "experts" not in children:
        return None
    odd = strangers(module, {router, "experts", str(shared), "shared_expert_gate"})
    if odd or strangers(children[router], _ROUTER_PARAMETERS):
        return None
    parts = [_experts(f"{name}.experts", children["experts"])]
    if shared is not None:
        parts.append(feed_forward_part(f"{name}.{shared}", children[shared]))
    reads = columns(f"{name}.{router}", children[router])
    if "shared_expert_gate" in children:
        reads += columns(f"{name}.shared_expert_gate", children["shared_expert_gate"])
    return _joined([Part("mlp", reads, ()), *parts])


def _experts(name: str, experts: Any) -> Part | None:
    if isinstance(experts, nn.ModuleList):
        return _joined([feed_forward_part(f"{name}.{i}", e) for i, e in enumerate(experts)])
    if isinstance(experts, ExpertLayers):
        inside = getattr(experts.between, "__self__", None)
        form = "plain" if inside is None else _form(inside)
        return None if form is None else _opened(f"{name}.layers", experts, form)
    has_flags = all(hasattr(experts, flag) for flag in ("has_gate", "has_bias", "is_transposed"))
    if not has_flags or strangers(experts, _FUSED_PARAMETERS):
        return None
    form = _form(experts)
    return None if form is None else _fused(name, experts, form)


def _form(experts: Any) -> str | None:
    """How gate and up lie in the first layer's outputs; None for a gate of an unknown kind."""
    if not experts.has_gate:
        return "plain"
    if not experts.is_concatenated:
        return "pairs"
    gate = getattr(type(experts)._apply_gate, "__name__", "")
    return "halves" if gate == "_default_apply_gate" else None


def _fused(name: str, experts: Any, form: str) -> Part:
    """Experts in parameters [experts, out, in], or [experts, in, out] if transposed."""
    first = f"{name}.gate_up_proj" if experts.has_gate else f"{name}.up_proj"
    down, flip = f"{name}.down_proj", experts.is_transposed
    count, *shape = experts.down_proj.shape
    seams = []
    for i in range(count):
        up = [Slot(first, 1 if flip else 0, at=(i,))]
        if experts.has_bias:
            up.append(Slot(f"{first}_bias", 0, at=(i,)))
        read = (Slot(down, 0 if flip else 1, at=(i,)),)
        seams.append(_seam(f"{name}.{i}", form, shape[0 if flip else 1], tuple(up), read))
    writes = [Slot(down, 2 if flip else 1)]
    if experts.has_bias:
        writes.append(Slot(f"{down}_bias", 1))
    return Part("mlp", (Slot(first, 1 if flip else 2),), tuple(writes), tuple(seams))


def _opened(name: str, experts: ExpertLayers, form: str) -> Part | None:
    """Experts as layers."""
    parts: list[Part | None] = []
    layers: Any = experts.layers
    for i, expert in enumerate(layers):
        up, down = (f"{name}.{i}.up", expert.up), (f"{name}.{i}.down", expert.down)
        width = down[1].weight.shape[1]
        seam = _seam(f"{name}.{i}", form, width, rows(*up), columns(*down))
        parts.append(Part("mlp", columns(*up), rows(*down), (seam,)))
    return _joined(parts)


def _seam(
    name: str, form: str, width: int, first: tuple[Slot, ...], read: tuple[Slot, ...]
) -> Seam:
    """From the first layer's outputs to the second layer's inputs.

    Halves are gate, then up. Pairs alternate, and GPT-OSS clamps them: only orders pass.
    """
    if form == "halves":
        up = tuple(replace(slot, start=width) for slot in first)
        return Seam(name, "up", width, up, read, (SCALE, ORDER), first)
    unit = 2 if form == "pairs" else 1
    return Seam(name, "up", width, tuple(replace(s, unit=unit) for s in first), read, (ORDER,))


def _joined(parts: list[Part | None]) -> Part | None:
    """Several branches as one; None if one of them is not known."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Part(
        "mlp",
        tuple(slot for part in known for slot in part.reads),
        tuple(slot for part in known for slot in part.writes),
        tuple(seam for part in known for seam in part.seams),
    )
