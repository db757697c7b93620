"""Law: a format is its fields; names read back; max, min, step and order agree with `values`."""

import math
from itertools import pairwise, product

import pytest

from minifloat.errors import UserError
from minifloat.formats import (
    E4M3,
    E5M2,
    E8M0,
    FORMATS,
    NF4,
    POW4,
    Format,
    Top,
    floating,
    integer,
)

TOPS: tuple[Top, ...] = ("finite", "nan", "ieee")


def _floats(signed: bool) -> list[Format]:
    return [
        floating(e, m, top=top, signed=signed)
        for e, m, top in product(range(1, 7), range(7), TOPS)
        if 2 <= signed + e + m <= 8 and (top != "ieee" or e >= 2)
    ]


SIGNED_FLOATS = _floats(signed=True)
OTHER_BIASES = [Format.parse(name) for name in ("e4m3b11", "e3m0b4", "e2m1b0", "ue4m4b9")]
FLOATS = SIGNED_FLOATS + _floats(signed=False) + OTHER_BIASES
INTEGERS = [integer(bits, signed=signed) for bits in range(2, 9) for signed in (True, False)]
POWERS = [E8M0, POW4]
ALL = [*FLOATS, *INTEGERS, NF4, *POWERS]


@pytest.mark.parametrize("fmt", [*ALL, *FORMATS.values()], ids=str)
def test_name_reads_back(fmt: Format) -> None:
    assert Format.parse(fmt.name) == fmt
    assert Format.parse(f" {fmt.name.upper()} ") == fmt
    assert hash(Format.parse(fmt.name)) == hash(fmt)
    assert str(fmt) == fmt.name


def test_names_are_distinct() -> None:
    assert len({fmt.name for fmt in ALL}) == len(set(ALL)) == len(ALL)


@pytest.mark.parametrize("fmt", ALL, ids=str)
def test_extremes_agree_with_values(fmt: Format) -> None:
    finite = [v for v in fmt.values if math.isfinite(v)]
    assert len(fmt.values) == 2**fmt.bits
    assert fmt.max == max(finite)
    assert fmt.min == min(finite)
    if fmt.max > 0:
        assert fmt.max_exponent == math.floor(math.log2(fmt.max))


@pytest.mark.parametrize("fmt", [f for f in FLOATS + INTEGERS if f.max > 0], ids=str)
def test_step_is_the_smallest_positive_value(fmt: Format) -> None:
    assert fmt.step == min(v for v in fmt.values if v > 0)
    assert all((v / fmt.step).is_integer() for v in fmt.values if math.isfinite(v))


@pytest.mark.parametrize("fmt", FLOATS + POWERS, ids=str)
def test_values_grow_with_the_magnitude_code(fmt: Format) -> None:
    count = 2 ** (fmt.exponent_bits + fmt.mantissa_bits)
    positive = [v for v in fmt.values[:count] if not math.isnan(v)]
    assert all(low < high for low, high in pairwise(positive))
    if fmt.signed:
        assert all(
            math.copysign(1, low) == 1 and math.copysign(1, high) == -1 and low == -high
            for low, high in zip(fmt.values[:count], fmt.values[count:], strict=True)
            if not math.isnan(low)
        )


@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
def test_integers_are_twos_complement(fmt: Format) -> None:
    low = -(2 ** (fmt.bits - 1)) if fmt.signed else 0
    assert sorted(fmt.values) == list(range(low, low + 2**fmt.bits))
    assert fmt.step == 1
    assert all(int(v) % 2**fmt.bits == code for code, v in enumerate(fmt.values))


@pytest.mark.parametrize("fmt", FLOATS + POWERS, ids=str)
def test_top_decides_the_special_codes(fmt: Format) -> None:
    nans = sum(math.isnan(v) for v in fmt.values)
    infinities = sum(math.isinf(v) for v in fmt.values)
    sides = 1 + fmt.signed
    last = 2**fmt.mantissa_bits
    expected = {"finite": (0, 0), "nan": (sides, 0), "ieee": (sides * (last - 1), sides)}
    assert (nans, infinities) == expected[fmt.top]
    assert (fmt.nan_code is None) == (nans == 0)
    if fmt.nan_code is not None:
        assert math.isnan(fmt.value(fmt.nan_code))
    if infinities:
        assert fmt.value(fmt.infinity_code) == math.inf


@pytest.mark.parametrize(
    ("name", "largest", "step"),
    [
        ("e2m1", 6, 0.5),
        ("e2m3", 7.5, 0.125),
        ("e3m2", 28, 0.0625),
        ("e4m3", 448, 2**-9),
        ("e5m2", 57344, 2**-16),
        ("e4m3.ieee", 240, 2**-9),
        ("e3m4.ieee", 15.5, 2**-6),
        ("e8m0", 2.0**127, 2.0**-127),
        ("pow4", 1, 2**-14),
        ("fp16", 65504, 2**-24),
    ],
)
def test_published_ranges(name: str, largest: float, step: float) -> None:
    fmt = POW4 if name == "pow4" else Format.parse(name)
    smallest = fmt.min if fmt.is_power_of_two else fmt.step
    assert (fmt.max, smallest) == (largest, step)


def test_ocp_tops_are_the_defaults() -> None:
    assert (E4M3.top, E5M2.top) == ("nan", "ieee")


@pytest.mark.parametrize("name", ["", "e0m3", "e9m9", "e5m3", "e1m0.x", "e1m2.ieee", "int9"])
def test_bad_names_are_user_errors(name: str) -> None:
    with pytest.raises(UserError):
        Format.parse(name)
