"""Seams of a stack of blocks: within branches, behind norms, along the residual stream.

A block is read by the names that transformers gives its norms and branches. What is not known by name
gets no seams: a seam that does not cancel would break a model silently.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from minifloat.models.attention import attention_part
from minifloat.models.feed_forward import feed_forward_part
from minifloat.models.latent_attention import latent_attention_part
from minifloat.models.mixture import experts_part
from minifloat.models.outside import output_layer
from minifloat.models.part import Part, strangers
from minifloat.models.seam import ORDER, ROTATION, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_norm, rows, subtracts_mean
from minifloat.models.state_space import state_space_part

# (norm before the mixer, norm before the mlp, norms behind branches), as transformers names them.
_NORMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("input_layernorm", "post_attention_layernorm", ()),
    ("input_layernorm", "pre_ff_layernorm", ()),
    ("attention_layernorm", "feedforward_layernorm", ()),
    ("ln_attn", "ln_mlp", ()),
    ("ln_1", "ln_2", ()),
    ("norm_1", "norm_2", ()),
    ("norm1", "norm2", ()),
    ("layer_norm1", "layer_norm2", ()),
    ("layernorm_before", "layernorm_after", ()),
    ("self_attn_layer_norm", "final_layer_norm", ()),
    ("input_layernorm", "input_layernorm", ()),
    ("ln_1", "ln_1", ()),
    ("norm", "norm", ()),
    ("", "", ("post_attention_layernorm", "post_feedforward_layernorm")),
    (
        "input_layernorm",
        "pre_feedforward_layernorm",
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    (
        "input_layernorm",
        "post_attention_layernorm",
        ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
)


@dataclass(frozen=True)
class Block:
    """A block taken apart; `parts` and `norms` by the children's names."""

    name: str
    parts: dict[str, Part]
    norms: dict[str, nn.Module]
    layout: tuple[str, str, tuple[str, ...]] | None
    closed: bool  # nothing in it is unknown

    def seams(self) -> Iterator[Seam]:
        """Seams inside the branches, and from each norm to the layers that read it."""
        for part in self.parts.values():
            yield from part.seams
        for norm, reads in self._readers():
            gain = gains(f"{self.name}.{norm}", self.norms[norm])
            if gain and reads:
                width = len(self.norms[norm].weight)  # type: ignore[arg-type]
                yield Seam(f"{self.name}.{norm}", "norm", width, gain, reads, (SCALE,))

    def _readers(self) -> Iterator[tuple[str, tuple[Slot, ...]]]:
        before = self.layout[:2] if self.layout else ("", "")
        for norm in dict.fromkeys(filter(None, before)):
            kinds = [kind for kind, n in zip(("mixer", "mlp"), before, strict=True) if n == norm]
            parts = [part for part in self.parts.values() if part.kind in kinds]
            yield norm, tuple(slot for part in parts for slot in part.reads)


def read_block(name: str, block: nn.Module, config: Any) -> Block:
    """Take a block apart into branches and norms."""
    parts: dict[str, Part] = {}
    norms: dict[str, nn.Module] = {}
    for child, module in block.named_children():
        part = _part(f"{name}.{child}", module, config)
        if part is not None:
            parts[child] = part
        elif is_norm(module):
            norms[child] = module
    own = _own_layers(name, block, (*parts, *norms))
    known = {*parts, *norms}
    if own is not None:
        parts[""] = own
        known |= {"fc1", "fc2"}
    odd = strangers(block, known)
    unread = [child for child in odd if child in dict(block.named_children())]
    layout = None if unread or _is_post_norm(config) else _layout(set(norms))
    return Block(name, parts, norms, layout, not odd and layout is not None)


def stack_seams(blocks: Mapping[str, nn.Module], config: Any) -> list[Seam]:
    """Seams within every block."""
    return [
        seam for name, block in blocks.items() for seam in read_block(name, block, config).seams()
    ]


def language_seams(
    model: nn.Module, blocks: Mapping[str, nn.Module], writers: Sequence[Slot] | None = ()
) -> list[Seam]:
    """Seams of a language model: within blocks, before its head, and along the residual stream.

    `writers` are what else writes to the stream, such as the projector of a vision tower; None means
    that something unknown does, which leaves the stream without a seam.
    """
    prefix = next(iter(blocks)).rsplit(".", 2)[0]
    decoder = model.get_submodule(prefix)
    config: Any = decoder.config
    read = [read_block(name, block, config) for name, block in blocks.items()]
    seams = [seam for block in read for seam in block.seams()]
    head = output_layer(model)
    for name, norm in decoder.named_children():
        if is_norm(norm) and head and "embed" not in name:
            gain, width = gains(f"{prefix}.{name}", norm), features(head[1])[1]
            if gain:
                reads = columns(*head)
                seams.append(Seam(f"{prefix}.{name}", "norm", width, gain, reads, (SCALE,)))
    if writers is not None:
        seams += _residual(prefix, decoder, read, head, writers)
    return seams


def _residual(
    prefix: str,
    decoder: nn.Module,
    blocks: list[Block],
    head: tuple[str, nn.Module] | None,
    writers: Sequence[Slot],
) -> Iterator[Seam]:
    """The stream: from embeddings and branches to the readers of every block and the head."""
    children = [(f"{prefix}.{name}", c) for name, c in decoder.named_children() if _has_weights(c)]
    first = [slot for name, c in children if isinstance(c, nn.Embedding) for slot in rows(name, c)]
    norms = [(name, child) for name, child in children if is_norm(child)]
    odd = len(children) - len(first) - len(norms)  # all but the list of blocks
    if odd != 1 or head is None or not first or not all(block.closed for block in blocks):
        return
    norms += [(f"{b.name}.{n}", norm) for b in blocks for n, norm in b.norms.items()]
    width = features(head[1])[1]
    can_turn = not any(block.layout and block.layout[2] for block in blocks)
    can_turn = can_turn and not any(subtracts_mean(norm, width) for _, norm in norms)
    parts = [part for block in blocks for part in block.parts.values()]
    writes = (*first, *writers, *(slot for part in parts for slot in part.writes))
    reads = (*(slot for part in parts for slot in part.reads), *columns(*head))
    maps = (ORDER, ROTATION) if can_turn else (ORDER,)
    follow = tuple(slot for name, norm in norms for slot in gains(name, norm))
    yield Seam(prefix, "residual", width, writes, reads, maps, follow)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _part(name: str, module: nn.Module, config: Any) -> Part | None:
    return (
        attention_part(name, module, getattr(module, "config", config))
        or latent_attention_part(name, module)
        or state_space_part(name, module)
        or feed_forward_part(name, module)
        or experts_part(name, module)
    )


def _own_layers(name: str, block: nn.Module, others: tuple[str, ...]) -> Part | None:
    """OPT keeps its feed-forward layers in the block itself."""
    return feed_forward_part(name, block, others) if hasattr(block, "fc1") else None


def _layout(norms: set[str]) -> tuple[str, str, tuple[str, ...]] | None:
    found = (row for row in _NORMS if {*row[:2], *row[2]} - {""} == norms)
    return next(found, None)


def _is_post_norm(config: Any) -> bool:
    """Whether flags of old models put the norms elsewhere than their names say."""
    moved = getattr(config, "apply_residual_connection_post_layernorm", False)
    weighted = hasattr(config, "full_attn_alpha_factor")  # MiniMax adds the normalized stream
    return bool(moved) or weighted or getattr(config, "do_layer_norm_before", True) is False
