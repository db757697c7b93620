"""Seams of Mamba mixers: orders of channels, heads, groups and states, and the small inner maps.

Between in_proj and out_proj lie a convolution of every channel by itself, SiLU, and a scan that is
linear in x but multiplies it with B, C and the step: channels may change places, not scale. Mamba-2's
scan shares the step in a head and B, C in a group, so channels stay in their head and heads in their
group (Quamba2, arXiv 2503.22879, section 4, sorts along these orders).
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from minifloat.models.part import Part, strangers
from minifloat.models.seam import ORDER, ROTATION, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, is_norm, rows

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
    x_proj, dt_proj = (f"{name}.x_proj", mixer.x_proj), (f"{name}.dt_proj", mixer.dt_proj)
    inside = (
        *rows(f"{name}.in_proj", mixer.in_proj),
        *rows(f"{name}.in_proj", mixer.in_proj, start=width),
        *rows(f"{name}.conv1d", mixer.conv1d),
        *columns(*x_proj),
        *rows(*dt_proj),
        Slot(f"{name}.A_log", 0),
        Slot(f"{name}.D", 0),
    )
    out = columns(f"{name}.out_proj", mixer.out_proj)
    yield Seam(name, "channel", width, inside, out, (ORDER,))
    step, b, c = (rows(*x_proj, start=start) for start in (0, rank, rank + states))
    norms = {n: getattr(mixer, n) for n in sorted(_MAMBA1_NORMS) if hasattr(mixer, n)}
    after = {n: gains(f"{name}.{n}", norm) for n, norm in norms.items() if is_norm(norm)}
    along = (Slot(f"{name}.A_log", 1), *after.get("b_layernorm", ()), *after.get("c_layernorm", ()))
    yield Seam(name, "state", states, b, c, (ORDER,) if norms else (SCALE, ORDER), along)
    maps = (ORDER, ROTATION) if norms else (SCALE, ORDER, ROTATION)
    between = after.get("dt_layernorm", ())
    yield Seam(name, "step", rank, step, columns(*dt_proj), maps, between)
    if all(after.values()) and after:
        b_gain, c_gain = after["b_layernorm"], after["c_layernorm"]
        yield Seam(f"{name}.b_layernorm", "state", states, b_gain, c_gain, (SCALE,))
        yield Seam(f"{name}.dt_layernorm", "norm", rank, between, columns(*dt_proj), (SCALE,))


def _mamba2(name: str, mixer: Any) -> Iterator[Seam]:
    """in_proj rows [z | x | B | C | step], conv1d [x | B | C], one A, D and step bias a head."""
    heads, width = mixer.A_log.shape[0], features(mixer.out_proj)[1]
    rest = features(mixer.in_proj)[0] - 2 * width - heads  # B and C
    groups = int(mixer.n_groups)
    states = rest // 2 // groups
    norm = getattr(mixer, "norm", None)

    def lanes(unit: int) -> tuple[Slot, ...]:
        """The channels of x, and all that goes with them, `unit` at a time."""
        inside = gains(f"{name}.norm", norm, unit=unit) if norm is not None else ()
        for start in (0, width):
            inside += rows(f"{name}.in_proj", mixer.in_proj, start=start, unit=unit)
        return inside + rows(f"{name}.conv1d", mixer.conv1d, unit=unit)

    def steps(unit: int) -> tuple[Slot, ...]:
        """What a head has one of."""
        inside = rows(f"{name}.in_proj", mixer.in_proj, start=2 * width + rest, unit=unit)
        return inside + tuple(Slot(f"{name}.{n}", 0, unit=unit) for n in ("A_log", "D", "dt_bias"))

    def states_of(which: int, unit: int) -> tuple[Slot, ...]:
        """Rows of B (0) or C (1)."""
        start = which * groups * states
        inside = rows(f"{name}.in_proj", mixer.in_proj, start=2 * width + start, unit=unit)
        return inside + rows(f"{name}.conv1d", mixer.conv1d, start=width + start, unit=unit)

    def out(unit: int) -> tuple[Slot, ...]:
        return columns(f"{name}.out_proj", mixer.out_proj, unit=unit)

    dim, share = width // heads, heads // groups
    yield Seam(name, "channel", width, lanes(1), out(1), (ORDER,), cell=dim)
    yield Seam(name, "head", heads, lanes(dim) + steps(1), out(dim), (ORDER,), cell=share)
    b, c = states_of(0, 1), states_of(1, 1)
    yield Seam(name, "state", groups * states, b, c, (ORDER,), cell=states)
    whole = lanes(dim * share) + steps(share) + states_of(0, states) + states_of(1, states)
    yield Seam(name, "group", groups, whole, out(dim * share), (ORDER,))
    if norm is not None and (gain := gains(f"{name}.norm", norm)):
        yield Seam(f"{name}.norm", "gate", width, gain, out(1), (SCALE,))
