"""Seams of the attention and feed-forward modules of diffusers.

Joint attention (SD3, Flux) puts the tokens of two streams in one softmax: both streams' values reach
both outputs and both streams' queries meet both streams' keys, so a map has to go through all of them.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from minifloat.models.part import strangers
from minifloat.models.seam import MAPS, ORDER, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, rows

_QUERIES = ("to_q", "add_q_proj")
_KEYS = ("to_k", "add_k_proj")
_VALUES = ("to_v", "add_v_proj")
_OUTPUTS = ("to_out.0", "to_add_out")
_QUERY_NORMS = ("norm_q", "norm_added_q")
_KEY_NORMS = ("norm_k", "norm_added_k")
_KNOWN = {*_QUERIES, *_KEYS, *_VALUES, *_QUERY_NORMS, *_KEY_NORMS, "to_out", "to_add_out"}
_KNOWN |= {"group_norm", "norm_cross"}
# Processors that turn nothing; any other may have rotary embeddings, which come in many forms.
_WITHOUT_ROPE = (
    "AttnProcessor",
    "AttnProcessor2_0",
    "AttnAddedKVProcessor",
    "AttnAddedKVProcessor2_0",
    "JointAttnProcessor2_0",
    "SanaAttnProcessor2_0",
    "SanaLinearAttnProcessor2_0",
)


def is_attention(module: Any) -> bool:
    """Whether a module is attention as diffusers builds it, and nothing more than is known here."""
    layers = (getattr(module, name, None) for name in ("to_q", "to_k", "to_v"))
    has_heads = isinstance(getattr(module, "heads", None), int)
    return all(map(is_layer, layers)) and has_heads and not strangers(module, _KNOWN)


def attention_seams(name: str, module: nn.Module, outputs: tuple[Slot, ...] = ()) -> Iterator[Seam]:
    """Values to outputs, queries to keys, and the norm inside if there is one.

    `outputs` read the values where the block has the output layer (Flux's single blocks).
    """
    heads = int(module.heads)  # type: ignore[arg-type]
    layers = _present(module, (*_QUERIES, *_KEYS, *_VALUES, *_OUTPUTS))
    dim = features(layers["to_q"])[0] // heads
    width = features(layers["to_v"])[0]
    copies = heads * dim // width
    for leaf in _OUTPUTS:
        if leaf in layers:
            where = {"block": dim, "copies": copies}
            outputs += columns(f"{name}.{leaf}", layers[leaf], **where)
    if outputs and features(layers["to_k"])[0] == width:
        values = _rows(name, layers, _VALUES)
        yield Seam(name, "value", width, values, outputs, MAPS, cell=dim)
        yield from _query_seam(name, module, layers, dim, copies)
    norm = getattr(module, "group_norm", None)
    if norm is not None and (gain := gains(f"{name}.group_norm", norm)):
        reads = (s for n in ("to_q", "to_k", "to_v") for s in columns(f"{name}.{n}", layers[n]))
        yield Seam(f"{name}.group_norm", "norm", len(norm.weight), gain, tuple(reads), (SCALE,))


def _query_seam(
    name: str,
    module: nn.Module,
    layers: dict[str, nn.Module],
    dim: int,
    copies: int,
) -> Iterator[Seam]:
    """Queries to keys; through the gains where norms follow. Under RoPE one scale serves a head."""
    width = features(layers["to_k"])[0]
    has_rope = type(getattr(module, "processor", None)).__name__ not in _WITHOUT_ROPE
    heads = tuple(i // dim for i in range(width)) if has_rope else ()
    share = {"block": dim, "copies": copies} if copies > 1 else {}
    norms = _present(module, (*_QUERY_NORMS, *_KEY_NORMS))
    if not norms:
        queries, keys = _rows(name, layers, _QUERIES, **share), _rows(name, layers, _KEYS)
        maps = (SCALE,) if has_rope else (SCALE, ORDER)
        yield Seam(name, "query", width, queries, keys, maps, cell=dim, ties=heads)
        return
    found = {n: gains(f"{name}.{n}", norm) for n, norm in norms.items()}
    sizes = {len(norm.weight) for n, norm in norms.items() if found[n]}  # type: ignore[arg-type]
    if all(found.values()) and sizes in ({dim}, {width}):
        size = sizes.pop()
        queries = tuple(s for n in _QUERY_NORMS for s in found.get(n, ()))
        keys = tuple(s for n in _KEY_NORMS for s in found.get(n, ()))
        ties = tuple(i // dim for i in range(size)) if has_rope else ()
        yield Seam(f"{name}.norm_q", "query", size, queries, keys, (SCALE,), ties=ties)


def feed_forward_seam(name: str, module: Any) -> Seam | None:
    """From net.0 to net.2 of diffusers' FeedForward: gated by the second half, or plain."""
    first, last = module.net[0].proj, module.net[2]
    one, two = (f"{name}.net.0.proj", first), (f"{name}.net.2", last)
    if not (is_layer(first) and is_layer(last)):
        return None
    width = features(last)[1]
    if features(first)[0] == width:
        return Seam(name, "up", width, rows(*one), columns(*two), (ORDER,))
    gate = rows(*one, start=width)
    return Seam(name, "up", width, rows(*one), columns(*two), (SCALE, ORDER), gate)


def _present(module: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """The children of these names that are there and are no placeholders."""
    found = {}
    for name in names:
        child: Any = module
        for part in name.split("."):
            child = child[int(part)] if part.isdigit() and child else getattr(child, part, None)
        if isinstance(child, nn.Module) and not isinstance(child, nn.Identity):
            found[name] = child
    return found


def _rows(
    name: str, layers: dict[str, nn.Module], names: tuple[str, ...], **where: Any
) -> tuple[Slot, ...]:
    return tuple(s for n in names if n in layers for s in rows(f"{name}.{n}", layers[n], **where))
