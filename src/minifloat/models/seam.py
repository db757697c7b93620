"""Seams: places in a model where a map of the channels cancels between the parameters around it.

Where x reaches its readers through nothing but linear maps, x = P u and y = C x, any invertible T can
be slipped in: P becomes P T^-1 and C becomes T C, and the model computes what it did. What lies between
narrows T: an elementwise product leaves scales and orders, an activation function leaves orders, heads
and groups keep channels inside their cell. A seam says which maps it admits; folding is arithmetic on
named parameters and never meets a model class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.errors import UserError

SCALE, ORDER, ROTATION = MAPS = ("scale", "order", "rotation")
Turn = Callable[[Tensor], Tensor]

# Vectors that tell an orthogonal matrix from others; a wrong one passes with no chance to speak of.
_PROBES = 16


@dataclass(frozen=True)
class Slot:
    """Where the channels of a seam lie along one axis of a parameter.

    Channel c = h * block + i is found at `start + h * stride + (g * block + i) * unit`, followed by
    `unit - 1` elements that move with it, for each of the copies g. So one form says the spans of a
    fused projection (start), heads that lie between others (block, stride), keys that serve several
    queries (copies) and heads as channels (unit).

    Attributes:
        name: the parameter's full name.
        axis: the axis along which the channels lie.
        start: the first element.
        block: channels that lie together; 0 means all of them.
        stride: elements from block to block; 0 means no gaps.
        copies: how often a block occurs in a row.
        unit: elements of one channel.
        offset: the parameter holds its value less this: 1 for a gain that is used as 1 + w.
        at: leading indices of the one part that is meant, such as one expert of many; the axis counts
            after them.
    """

    name: str
    axis: int
    start: int = 0
    block: int = 0
    stride: int = 0
    copies: int = 1
    unit: int = 1
    offset: float = 0.0
    at: tuple[int, ...] = ()

    def places(self, width: int) -> Tensor:
        """The elements along the axis that belong to each channel, int64 [width, copies * unit]."""
        block = self.block or width
        stride = self.stride or block * self.copies * self.unit
        channel = torch.arange(width)
        first = self.start + channel // block * stride + channel % block * self.unit
        copies = torch.arange(self.copies)[:, None] * block * self.unit
        return first[:, None] + (copies + torch.arange(self.unit)).reshape(-1)


@dataclass(frozen=True)
class Seam:
    """A place where a map of `width` channels cancels.

    Attributes:
        name: where it is, such as "model.layers.0.self_attn".
        kind: what lies there: norm, value, query, up, residual, state ...
        width: its channels.
        producers: what writes the channels; a scale divides them.
        consumers: what reads the channels; a scale multiplies them. Keys are the consumers of queries.
        maps: those of scale, order and rotation that cancel here.
        followers: what lies elementwise between: moves with an order, ignores a scale, and must be
            uniform under a rotation.
        cell: orders and rotations stay inside runs of this many channels; 0 means the whole width.
        ties: a label a channel; channels of one label take one scale. Empty: every channel its own.
    """

    name: str
    kind: str
    width: int
    producers: tuple[Slot, ...]
    consumers: tuple[Slot, ...]
    maps: tuple[str, ...]
    followers: tuple[Slot, ...] = ()
    cell: int = 0
    ties: tuple[int, ...] = ()

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every place that a map touches."""
        return (*self.producers, *self.consumers, *self.followers)


@torch.no_grad()
def fold_scale(model: nn.Module, seam: Seam, scale: Tensor) -> None:
    """Divide the channels by `scale` [width] where they are produced, multiply where they are read."""
    _check(model, seam, SCALE)
    scale = scale.detach().double()
    if scale.shape != (seam.width,) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise UserError(f"{_title(seam)} needs {seam.width} positive, finite scales")
    if not _agree(scale, seam.ties):
        raise UserError(
            f"{_title(seam)} turns channels in pairs, which must share a scale; see tie_scale"
        )
    for slots, factor in ((seam.producers, 1 / scale), (seam.consumers, scale)):
        for slot in slots:
            _edit(model, slot, seam.width, _scaling(factor))


@torch.no_grad()
def fold_order(model: nn.Module, seam: Seam, order: Tensor) -> None:
    """Make old channel `order[i]` channel i, everywhere; `order` is a permutation [width]."""
    _check(model, seam, ORDER)
    if not torch.equal(order.sort().values.cpu(), torch.arange(seam.width)):
        raise UserError(f"{_title(seam)} needs a permutation of {seam.width} channels")
    cell = seam.cell or seam.width
    if not torch.equal(order.cpu() // cell, torch.arange(seam.width) // cell):
        raise UserError(f"{_title(seam)} keeps channels inside their {cell}; this order moves them")
    for slot in _distinct(model, seam.slots):
        _edit(model, slot, seam.width, lambda x: x[..., order.to(x.device), :])


@torch.no_grad()
def fold_rotation(model: nn.Module, seam: Seam, rotation: Tensor | Turn) -> None:
    """Turn the channels x into x Q, in each cell.

    Q is an orthogonal matrix [cell, cell], one a cell [cells, cell, cell], or a function that turns
    the last axis, such as `hadamard.turn`.
    """
    _check(model, seam, ROTATION)
    cell = seam.cell or seam.width
    turn = _by_matrix(seam, rotation, cell) if isinstance(rotation, Tensor) else rotation
    _check_orthogonal(seam, turn, cell)
    for slot in seam.followers:
        _edit(model, slot, seam.width, _check_uniform(seam, slot))
    for slot in _distinct(model, (*seam.producers, *seam.consumers)):
        _edit(model, slot, seam.width, _turning(turn, cell))


def tie_scale(seam: Seam, scale: Tensor) -> Tensor:
    """The scale [width] with the geometric mean of each tie in the place of its channels."""
    if not seam.ties:
        return scale
    label = torch.tensor(seam.ties, device=scale.device)
    total = torch.zeros(int(label.max()) + 1, dtype=scale.dtype, device=scale.device)
    total = total.index_add(0, label, scale.log())
    return (total / torch.bincount(label))[label].exp()


@torch.no_grad()
def fold_gains(model: nn.Module, seams: Sequence[Seam]) -> None:
    """Move the gains of norms into their readers, so that a residual stream can be rotated.

    Norms with a bias are left alone: they subtract the mean, and no rotation passes them anyway.
    """
    for seam in seams:
        if seam.kind == "norm" and len(seam.producers) == 1:
            _check(model, seam, SCALE)
            gain = _gathered(model, seam.producers[0], seam.width)[:, 0]
            for slot in seam.consumers:
                _edit(model, slot, seam.width, _scaling(gain))
            _edit(model, seam.producers[0], seam.width, torch.ones_like)


def _scaling(factor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor.to(x)[:, None]


def _turning(turn: Turn, cell: int) -> Callable[[Tensor], Tensor]:
    """A change of x [..., width, copies]: each cell is turned along the width."""

    def change(x: Tensor) -> Tensor:
        cells = x.movedim(-1, 0)
        cells = cells.reshape(*cells.shape[:-1], -1, cell)
        return turn(cells).flatten(-2).movedim(0, -1)

    return change


def _by_matrix(seam: Seam, matrix: Tensor, cell: int) -> Turn:
    """x [..., cells, cell] times one matrix, or times a matrix each."""
    if matrix.shape[-2:] != (cell, cell):
        raise UserError(f"{_title(seam)} takes matrices of {cell} x {cell}")
    if matrix.ndim == 2:
        return lambda x: x @ matrix.to(x)
    return lambda x: torch.einsum("...hc,hcd->...hd", x, matrix.to(x))


def _check_uniform(seam: Seam, slot: Slot) -> Callable[[Tensor], Tensor]:
    def check(x: Tensor) -> Tensor:
        if not torch.allclose(x, x[..., :1, :].expand_as(x), rtol=1e-6):
            raise UserError(
                f"{_title(seam)} cannot be rotated past {slot.name}, which scales every channel "
                "by itself; fold the gains of the norms into their readers first (fold_gains)"
            )
        return x

    return check


def _check_orthogonal(seam: Seam, turn: Turn, cell: int) -> None:
    """Ask whether angles stay what they are, of a few random vectors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBES, seam.width // cell, cell, generator=generator, dtype=torch.float64)
    y = turn(x)
    if y.shape != x.shape:
        raise UserError(f"{_title(seam)} takes rotations of {cell} channels")
    before, after = (torch.einsum("ahc,bhc->hab", v, v) / cell for v in (x, y))
    if not torch.allclose(before, after, atol=1e-4):
        raise UserError(f"{_title(seam)} needs an orthogonal matrix")


def _check(model: nn.Module, seam: Seam, kind: str) -> None:
    """Refuse what does not cancel, before anything is changed."""
    if kind not in seam.maps:
        raise UserError(f"{_title(seam)} admits {' and '.join(seam.maps)}, but no {kind}")
    names = {slot.name for slot in seam.slots}
    twins = dict(model.named_parameters(remove_duplicate=False))
    for name in names:
        if name not in twins:
            raise UserError(f"{name} is no parameter of this model; fold before quantizing")
        others = [other for other, p in twins.items() if p is twins[name] and other not in names]
        if others:
            raise UserError(
                f"{name} is tied to {others[0]}, which {_title(seam)} must not change; give it a "
                "copy of its own first (minifloat.models.tied.untie)"
            )


def _distinct(model: nn.Module, slots: Sequence[Slot]) -> list[Slot]:
    """The slots without those that mean the same elements of a tied parameter."""
    found: dict[Any, Slot] = {}
    for slot in slots:
        key = (id(model.get_parameter(slot.name)), slot.axis, slot.start, slot.at)
        found.setdefault(key, slot)
    return list(found.values())


def _view(model: nn.Module, slot: Slot) -> Tensor:
    """The parameter with the slot's axis last; shares its memory."""
    return model.get_parameter(slot.name).data[slot.at].movedim(slot.axis, -1)


def _gathered(model: nn.Module, slot: Slot, width: int) -> Tensor:
    """The slot's values [..., width, copies * unit], in fp32 at least and with the offset added."""
    view = _view(model, slot)
    values = view[..., slot.places(width).to(view.device)]
    return values.to(torch.promote_types(view.dtype, torch.float32)) + slot.offset


def _edit(model: nn.Module, slot: Slot, width: int, change: Callable[[Tensor], Tensor]) -> None:
    """Put `change` of the slot's values in their place."""
    view = _view(model, slot)
    changed = change(_gathered(model, slot, width)) - slot.offset
    view[..., slot.places(width).to(view.device)] = changed.to(view.dtype)


def _agree(scale: Tensor, ties: tuple[int, ...]) -> bool:
    """Whether channels of one label have one scale."""
    if not ties:
        return True
    first: dict[int, float] = {}
    pairs = zip(ties, scale.tolist(), strict=True)
    return all(abs(first.setdefault(label, s) - s) <= 1e-6 * s for label, s in pairs)


def _title(seam: Seam) -> str:
    return f"the {seam.kind} seam at {seam.name}"
