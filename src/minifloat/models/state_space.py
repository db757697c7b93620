"""Seams of Mamba mixers: orders of channels, heads, groups and states, and the small inner maps.

Between in_proj and out_proj lie a convolution of every channel by itself, SiLU, and a scan that is
linear in x but multiplies it with B, C and the step: channels may change places, not scale. Mamba-2's
scan shares the step in a head and B, C in a group, so channels stay in their head and heads in their
group (Quamba2, arXiv 2503.22879, section 4, sorts along these orders).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import MAPS, ORDER, ROTATION, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, rows

_MAMBA1 = {"in_proj", "conv1d", "x_proj", "dt_proj", "out_proj", "A_log", "D"}
_MAMBA1_NORMS = {"dt_layernorm", "b_layernorm", "c_layernorm"}
_MAMBA2 = {"in_proj", "conv1d", "out_proj", "A_log", "D", "dt_bias", "norm"}


def state_space_part(name: str, module: nn.Module) -> Part | None:
    """The branch of a Mamba or Mamba-2 mixer; None if it is none or does more than is known here."""
    if not (is_layer(getattr(module, "in_proj", None)) and hasattr(module, "A_log")):
        return None
    mixer: Any = module
    if mixer.A_log.ndim == 2 and not strangers(module, _MAMBA1 | _MAMBA1_NORMS):
        seams = tuple(_mamba1(name, mixer))
    elif mixer.A_log.ndim == 1 and not strangers(module, _MAMBA2):
        seams = tuple(_mamba2(name, mixer))
    else:
        return None
    reads = columns(f"{name}.in_proj", mixer.in_proj)
    return Part("mixer", reads, rows(f"{name}.out_proj", mixer.out_proj), seams)


def _mamba1(name: str, mixer: Any) -> Iterator[Seam]:
    """in_proj rows [x | z], x_proj rows [step | B | C], A_log [channels, states]."""
    width, states = mixer.A_log.shape
    rank = features(mixer.dt_proj)[1]
    yield Seam(name, "channel", width, _lanes1(name, mixer), _out(name, mixer), (ORDER,))
    norms = {n: getattr(mixer, n) for n in sorted(_MAMBA1_NORMS) if hasattr(mixer, n)}
    after = {n: gains(f"{name}.{n}", norm) for n, norm in norms.items()}
    x_proj = (f"{name}.x_proj", mixer.x_proj)
    step, b, c = (rows(*x_proj, start=start) for start in (0, rank, rank + states))
    along = (Slot(f"{name}.A_log", 1), *after.get("b_layernorm", ()), *after.get("c_layernorm", ()))
    yield Seam(name, "state", states, b, c, (ORDER,) if norms else (SCALE, ORDER), along)
    read, between = columns(f"{name}.dt_proj", mixer.dt_proj), after.get("dt_layernorm", ())
    maps = (ORDER, ROTATION) if norms else MAPS
    yield Seam(name, "step", rank, step, read, maps, between)
    if after and all(after.values()):  # Jamba; Falcon-Mamba's norms have no gains
        b, c = after["b_layernorm"], after["c_layernorm"]
        yield Seam(f"{name}.b_layernorm", "state", states, b, c, (SCALE,))
        yield Seam(f"{name}.dt_layernorm", "norm", rank, between, read, (SCALE,))


def _lanes1(name: str, mixer: Any) -> tuple[Slot, ...]:
    """All that belongs to a channel of Mamba 1 before out_proj."""
    width = mixer.A_log.shape[0]
    return (
        *rows(f"{name}.in_proj", mixer.in_proj),
        *rows(f"{name}.in_proj", mixer.in_proj, start=width),
        *rows(f"{name}.conv1d", mixer.conv1d),
        *columns(f"{name}.x_proj", mixer.x_proj),
        *rows(f"{name}.dt_proj", mixer.dt_proj),
        Slot(f"{name}.A_log", 0),
        Slot(f"{name}.D", 0),
    )


def _out(name: str, mixer: Any, unit: int = 1) -> tuple[Slot, ...]:
    return columns(f"{name}.out_proj", mixer.out_proj, unit=unit)


def _mamba2(name: str, mixer: Any) -> Iterator[Seam]:
    """One order inside each head, of heads in a group, of states in a group, and of groups."""
    own = _Mamba2(name, mixer)
    heads, groups, width, states = own.heads, own.groups, own.width, own.states
    dim, share = width // heads, heads // groups
    yield Seam(name, "channel", width, own.lanes(1), _out(name, mixer), (ORDER,), cell=dim)
    inside = own.lanes(dim) + own.steps(1)
    yield Seam(name, "head", heads, inside, _out(name, mixer, dim), (ORDER,), cell=share)
    b, c = own.rows_of("B", 1), own.rows_of("C", 1)
    yield Seam(name, "state", groups * states, b, c, (ORDER,), cell=states)
    inside = own.lanes(dim * share) + own.steps(share)
    inside += own.rows_of("B", states) + own.rows_of("C", states)
    yield Seam(name, "group", groups, inside, _out(name, mixer, dim * share), (ORDER,))
    norm = getattr(mixer, "norm", None)
    if norm is not None and (gain := gains(f"{name}.norm", norm)):
        yield Seam(f"{name}.norm", "gate", width, gain, _out(name, mixer), (SCALE,))


@dataclass(frozen=True)
class _Mamba2:
    """Slots of a Mamba-2 mixer, `unit` elements a channel.

    in_proj rows [z | x | B | C | step], conv1d [x | B | C]; A, D and the step's bias one a head.
    """

    name: str
    mixer: Any

    @property
    def heads(self) -> int:
        return int(self.mixer.A_log.shape[0])

    @property
    def groups(self) -> int:
        return int(self.mixer.n_groups)

    @property
    def width(self) -> int:
        return features(self.mixer.out_proj)[1]

    @property
    def states(self) -> int:
        both = features(self.mixer.in_proj)[0] - 2 * self.width - self.heads
        return both // 2 // self.groups

    def lanes(self, unit: int) -> tuple[Slot, ...]:
        """The channels of x and z, and of the norm behind the scan."""
        found = self._in(0, unit) + self._in(self.width, unit) + self._conv(0, unit)
        norm = getattr(self.mixer, "norm", None)
        return found if norm is None else found + gains(f"{self.name}.norm", norm, unit=unit)

    def steps(self, unit: int) -> tuple[Slot, ...]:
        """What a head has one of."""
        start = 2 * self.width + 2 * self.groups * self.states
        own = (Slot(f"{self.name}.{leaf}", 0, unit=unit) for leaf in ("A_log", "D", "dt_bias"))
        return *self._in(start, unit), *own

    def rows_of(self, which: str, unit: int) -> tuple[Slot, ...]:
        """The states of B or C."""
        start = self.width + (self.groups * self.states if which == "C" else 0)
        return self._in(self.width + start, unit) + self._conv(start, unit)

    def _in(self, start: int, unit: int) -> tuple[Slot, ...]:
        return rows(f"{self.name}.in_proj", self.mixer.in_proj, start=start, unit=unit)

    def _conv(self, start: int, unit: int) -> tuple[Slot, ...]:
        return rows(f"{self.name}.conv1d", self.mixer.conv1d, start=start, unit=unit)
