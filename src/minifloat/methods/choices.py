"""What methods for diffusion models let a user choose by name: families of formats, and roundings."""

from typing import Any

from minifloat.calibrate.walk import Pass
from minifloat.errors import UserError, unknown
from minifloat.formats import Format, floating, integer
from minifloat.passes.assign import round_to_nearest
from minifloat.passes.gptq import solve_gptq
from minifloat.passes.learn import learn_rounding


def candidates(family: str, bits: int, *, signed: bool = True) -> list[Format]:
    """All formats of a family and a width; floats have 1 to 5 exponent bits."""
    if not 2 <= bits <= 8:
        raise UserError(
            f"weights and activations take 2 to 8 bits (activations also 16), not {bits}"
        )
    if family == "int":
        return [integer(bits, signed=signed)]
    if family != "fp":
        raise unknown("family", family, ("fp", "int"))
    width = bits - signed
    return [
        floating(e, width - e, signed=signed)
        for e in range(min(1 if bits <= 4 else 2, width), min(5, width) + 1)
    ]


def every_input(family: str, bits: int, unsigned: bool) -> list[Format]:
    """Candidates for activations, with unsigned formats after the signed ones if wanted."""
    return candidates(family, bits) + (candidates(family, bits, signed=False) if unsigned else [])


def by_width(names: str, *widths: int) -> list[list[Format]]:
    """The formats of a list such as "e4m3, e2m1", for each width those that have it.

    Raises:
        UserError: a format of none of the widths, or an unknown name.
    """
    listed = [Format.parse(name.strip()) for name in names.split(",") if name.strip()]
    for fmt in listed:
        if fmt.bits not in widths:
            raise UserError(
                f"formats={names}: {fmt.name} has {fmt.bits} bits, but "
                f"{' and '.join(map(str, widths))} are asked for"
            )
    return [[fmt for fmt in listed if fmt.bits == width] for width in widths]


def rounder(name: str, **settings: Any) -> Pass:
    """The pass that rounds weights, by name, with the settings of learned rounding."""
    rounders: dict[str, Pass] = {
        "learned": learn_rounding(**settings),
        "nearest": round_to_nearest(),
        "gptq": solve_gptq(),
    }
    if name not in rounders:
        raise unknown("rounding", name, rounders)
    return rounders[name]


def inverts(name: str, start: str) -> bool:
    """Whether rounding of that name, begun like that, inverts Hessians."""
    return "gptq" in ((name, start) if name == "learned" else (name,))
