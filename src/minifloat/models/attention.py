"""Seams of attention: values to output inside each head, queries to keys in the pairs that RoPE turns.

Softmax weighs whole value vectors, so a head's values admit any map that its columns of the output
projection undo; several query heads read one value head under GQA. Queries and keys meet in a product:
what divides one may multiply the other, equally in both channels of a rotated pair.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import MAPS, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, is_norm, rows

_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "proj", "projection_layer")
_SPLIT = ("q_proj", "k_proj", "v_proj")
_FUSED = ("qkv_proj", "qkv", "Wqkv", "c_attn", "query_key_value")
_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
_HEAD_DIM = ("head_dim", "head_size", "attention_head_size")


@dataclass(frozen=True)
class _Heads:
    """Queries, keys and values of an attention module, as rows of its layers."""

    dim: int
    count: int  # key and value heads
    copies: int  # query heads of each
    queries: tuple[Slot, ...]
    keys: tuple[Slot, ...]
    values: tuple[Slot, ...]
    reads: tuple[Slot, ...]

    @property
    def width(self) -> int:
        return self.dim * self.count


def attention_part(name: str, module: nn.Module, config: Any) -> Part | None:
    """The branch of an attention module of transformers; None if it does more than is known here."""
    output = next((n for n in _OUTPUTS if is_layer(getattr(module, n, None))), None)
    dim = next((d for n in _HEAD_DIM if isinstance(d := getattr(module, n, None), int)), None)
    if output is None or dim is None or getattr(config, "clip_qkv", None):
        return None
    known = {output, *_SPLIT, *_FUSED, *(n for pair in _NORMS for n in pair), "sinks"}
    query_heads = features(getattr(module, output))[1] // dim
    heads = _split(name, module, dim, query_heads) or _fused(name, module, dim, query_heads, config)
    if strangers(module, known) or heads is None:
        return None
    out_name, out = f"{name}.{output}", getattr(module, output)
    reads = columns(out_name, out, block=dim, copies=heads.copies)
    value = Seam(name, "value", heads.width, heads.values, reads, MAPS, cell=dim)
    seams = (value, *_query_seams(name, module, heads, config))
    return Part("mixer", heads.reads, rows(out_name, out), seams)


def _split(name: str, module: nn.Module, dim: int, query_heads: int) -> _Heads | None:
    """Heads of three layers of their own."""
    layers: list[Any] = [getattr(module, n, None) for n in _SPLIT]
    if not all(is_layer(layer) for layer in layers):
        return None
    q, k, v = ((f"{name}.{n}", layer) for n, layer in zip(_SPLIT, layers, strict=True))
    counts = [features(layer)[0] // dim for _, layer in (q, k, v)]
    if counts[0] != query_heads or counts[1] != counts[2] or query_heads % counts[1]:
        return None
    copies = query_heads // counts[1]
    queries = rows(*q, block=dim, copies=copies)
    reads = tuple(slot for layer in (q, k, v) for slot in columns(*layer))
    return _Heads(dim, counts[1], copies, queries, rows(*k), rows(*v), reads)


def _fused(name: str, module: nn.Module, dim: int, query_heads: int, config: Any) -> _Heads | None:
    """Heads of one layer: all queries, then all keys, then all values; or interleaved by head."""
    leaf = next((n for n in _FUSED if is_layer(getattr(module, n, None))), None)
    if leaf is None:
        return None
    layer, full = getattr(module, leaf), f"{name}.{leaf}"
    total = features(layer)[0] // dim
    count = (total - query_heads) // 2
    if count < 1 or query_heads % count or total != query_heads + 2 * count:
        return None
    copies, reads = query_heads // count, columns(full, layer)
    if _is_interleaved(leaf, config, count):
        step = (copies + 2) * dim
        where = [{"block": dim, "stride": step, "start": (copies + i) * dim} for i in range(2)]
        queries = rows(full, layer, block=dim, stride=step, copies=copies)
    else:
        where = [{"start": (query_heads + i * count) * dim} for i in range(2)]
        queries = rows(full, layer, block=dim, copies=copies)
    keys, values = (rows(full, layer, **place) for place in where)
    return _Heads(dim, count, copies, queries, keys, values, reads)


def _is_interleaved(leaf: str, config: Any, count: int) -> bool:
    """Whether q, k and v alternate head by head (GPT-NeoX, BLOOM, Falcon, GPT-BigCode)."""
    if leaf == "c_attn":
        return getattr(config, "multi_query", True) is False
    return leaf == "query_key_value" and count > 1


def _query_seams(name: str, module: nn.Module, heads: _Heads, config: Any) -> Iterator[Seam]:
    """Queries to keys: through their rows, or through the gains of the norms that follow them."""
    partner = partners(module, heads.dim, config)
    for q_name, k_name in _NORMS:
        if (q := getattr(module, q_name, None)) is not None and is_norm(q):
            if partner is not None:
                k = getattr(module, k_name)
                yield from _gain_seam(f"{name}.{q_name}", q, f"{name}.{k_name}", k, heads, partner)
            return
    if partner is not None:
        free = partner == tuple(range(heads.dim))
        maps, ties = (MAPS, ()) if free else ((SCALE,), _ties(partner, heads.count))
        yield Seam(
            name, "query", heads.width, heads.queries, heads.keys, maps, cell=heads.dim, ties=ties
        )


def _gain_seam(
    q_name: str, q: nn.Module, k_name: str, k: nn.Module, heads: _Heads, partner: tuple[int, ...]
) -> Iterator[Seam]:
    """One gain for all heads (Qwen3), or one for every channel of every head (OLMo2)."""
    if not (gains(q_name, q) and gains(k_name, k)):
        return
    count = 1 if q.weight.shape == (heads.dim,) else heads.count
    shared = {} if count == 1 else {"block": heads.dim, "copies": heads.copies}
    producers, consumers = gains(q_name, q, **shared), gains(k_name, k)
    ties = _ties(partner, count)
    yield Seam(q_name, "query", heads.dim * count, producers, consumers, (SCALE,), ties=ties)


def _ties(partner: tuple[int, ...], count: int) -> tuple[int, ...]:
    dim = len(partner)
    return tuple(h * dim + min(i, partner[i]) for h in range(count) for i in range(dim))


def partners(module: nn.Module, dim: int, config: Any) -> tuple[int, ...] | None:
    """The channel that rotary embeddings mix each channel of a head with; itself where they do not.

    transformers keeps the turning in each model's file, in halves (Llama) or in neighbours (Cohere,
    GPT-J); its function is asked which. None if the file has rotary embeddings of another form.
    """
    file = sys.modules[type(module).__module__]
    turn = _turn(file)
    if turn is None:
        rotary = any("rotary" in n.lower() or "rope" in n.lower() for n in vars(file))
        return None if rotary else tuple(range(dim))
    turned = _rotary_channels(config, dim)
    if turned is None:
        return None
    numbers = turn(torch.arange(1.0, turned + 1).reshape(1, 1, 1, -1)).flatten()
    return *(int(n) - 1 for n in numbers.abs()), *range(turned, dim)


def _turn(file: Any) -> Callable[[Tensor], Tensor] | None:
    """What a model's file turns by a right angle with."""
    for name in ("rotate_half", "rotate_every_two"):
        if hasattr(file, name):
            turn: Callable[[Tensor], Tensor] = getattr(file, name)
            return turn
    whole = getattr(file, "_apply_rotary_emb", None)  # GPT-OSS
    if whole is None or list(inspect.signature(whole).parameters) != ["x", "cos", "sin"]:
        return None

    def by_right_angle(x: Tensor) -> Tensor:
        half = x[..., : x.shape[-1] // 2]
        turned: Tensor = whole(x, torch.zeros_like(half), torch.ones_like(half))
        return turned

    return by_right_angle


def _rotary_channels(config: Any, dim: int) -> int | None:
    """Channels of a head that are turned; the rest stay as they are. None if layers differ in that."""
    if isinstance(getattr(config, "rotary_dim", None), int):
        return int(config.rotary_dim)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    shares = {kind.get("partial_rotary_factor", 1.0) for kind in kinds}
    return int(dim * shares.pop()) if len(shares) == 1 else None
