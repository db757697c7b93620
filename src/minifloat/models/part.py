"""A branch of a block: what reads the residual stream, what writes to it, and the seams inside."""

from dataclasses import dataclass, field

from torch import nn

from minifloat.models.seam import Seam, Slot

# What is inside a branch beside its layers and takes no part in a map of channels.
_SILENT = ("rotary_emb", "dropout", "drop", "act", "activation", "gelu", "drop_path")


@dataclass(frozen=True)
class Part:
    """A branch x + part(norm(x)).

    Attributes:
        kind: "mixer" (attention, state space) or "mlp" (feed-forward, experts).
        reads: columns of the layers that see the stream.
        writes: rows and biases of the layers whose output is added to it.
        seams: the seams within.
    """

    kind: str
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    seams: tuple[Seam, ...] = field(default=())


def strangers(module: nn.Module, known: set[str]) -> list[str]:
    """Children and parameters of a module that are not among the known ones.

    A branch with a stranger in it may do anything to its channels, so it gets no seams.
    """
    children = [name for name, child in module.named_children() if not _is_silent(name, child)]
    own = [name for name, _ in module.named_parameters(recurse=False)]
    return [name for name in (*children, *own) if name not in known]


def _is_silent(name: str, child: nn.Module) -> bool:
    """Whether a child does nothing to single channels: identity, dropout, one function for all."""
    if isinstance(child, nn.Identity | nn.Dropout):
        return True
    wide = any(parameter.numel() > 1 for parameter in child.parameters())
    return not wide and any(word in name for word in _SILENT)
