"""Seams of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values from one latent.

Each head's queries and keys have channels without RoPE, which admit any map, and channels with it,
where the keys are shared by all heads and are left alone here. The latents pass an RMSNorm, which
admits orders and rotations, and its gain a scale.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import MAPS, ORDER, ROTATION, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, rows

_KEYS_VALUES = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
_QUERIES = ("q_a_proj", "q_a_layernorm", "q_b_proj")


def latent_attention_part(name: str, module: nn.Module) -> Part | None:
    """The branch of a latent attention module; None if it is none or does more than is known here."""
    mla: Any = module
    if not all(hasattr(module, n) for n in ("kv_b_proj", "qk_nope_head_dim", "v_head_dim")):
        return None
    if strangers(module, {*_KEYS_VALUES, *_QUERIES, "q_proj"}):
        return None
    direct = is_layer(getattr(mla, "q_proj", None))
    first, last = ("q_proj", "q_proj") if direct else ("q_a_proj", "q_b_proj")
    reads = columns(f"{name}.{first}", getattr(mla, first))
    reads += columns(f"{name}.kv_a_proj_with_mqa", mla.kv_a_proj_with_mqa)
    seams = [*_heads(name, mla, last), *_latent(name, mla, *_KEYS_VALUES[:3])]
    if not direct:
        seams += _latent(name, mla, *_QUERIES)
    return Part("mixer", reads, rows(f"{name}.o_proj", mla.o_proj), tuple(seams))


def _heads(name: str, mla: Any, query: str) -> Iterator[Seam]:
    """Values to outputs, and the channels without RoPE of queries to those of keys."""
    plain, turned, value = mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    heads = features(mla.o_proj)[1] // value
    up = (f"{name}.kv_b_proj", mla.kv_b_proj)
    where = {"stride": plain + value}
    values = rows(*up, start=plain, block=value, **where)
    out = columns(f"{name}.o_proj", mla.o_proj)
    yield Seam(name, "value", heads * value, values, out, MAPS, cell=value)
    queries = rows(f"{name}.{query}", getattr(mla, query), block=plain, stride=plain + turned)
    keys = rows(*up, block=plain, **where)
    yield Seam(name, "query", heads * plain, queries, keys, MAPS, cell=plain)


def _latent(name: str, mla: Any, down: str, norm: str, up: str) -> Iterator[Seam]:
    """From the layer that makes a latent, past its norm, to the layer that reads it."""
    read = (f"{name}.{up}", getattr(mla, up))
    width = features(read[1])[1]
    gain: tuple[Slot, ...] = gains(f"{name}.{norm}", getattr(mla, norm))
    made = rows(f"{name}.{down}", getattr(mla, down))
    yield Seam(f"{name}.{norm}", "norm", width, gain, columns(*read), (SCALE,))
    yield Seam(
        f"{name}.{up}", "latent", width, made, columns(*read), (ORDER, ROTATION), followers=gain
    )
