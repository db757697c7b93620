"""Law: rounding gives the nearest value, ties by the format's rule, checked on every bfloat16.

The reference is a brute-force table: the two neighbours of x among the sorted values, and for ties
the even code (floats and integers), the upper value (powers of two) or the lower one (NF4).
"""

import math
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.formats import E8M0, NF4, POW4, Format, integer
from minifloat.rounding import decode, encode, round_power_of_two, round_to
from tests.laws.test_formats import ALL, FLOATS, INTEGERS, POWERS, SIGNED_FLOATS

BF16 = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
INPUTS = BF16.float()
NUMBERS = INPUTS[~INPUTS.isnan()]
SORTED = NUMBERS.sort().values

every = pytest.mark.parametrize("fmt", ALL, ids=str)
# e1m0.nan holds nothing but zero and NaN, so it has no binade to overflow from.
tops = pytest.mark.parametrize(
    "fmt", [f for f in FLOATS if f.top != "finite" and f.max > 0], ids=str
)
modes = pytest.mark.parametrize("fmt", [f for f in FLOATS + INTEGERS if f.top == "finite"], ids=str)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, any NaN equal to any other."""
    ints = {torch.float64: torch.int64, torch.float32: torch.int32}.get(a.dtype, torch.int16)
    return a.dtype == b.dtype and bool(
        ((a.view(ints) == b.view(ints)) | (a.isnan() & b.isnan())).all()
    )


def domain(fmt: Format, x: Tensor = NUMBERS) -> Tensor:
    """The numbers that have a nearest value: powers of two take positive ones."""
    return x[x > 0] if fmt.is_power_of_two else x


@lru_cache(maxsize=256)
def table(fmt: Format) -> tuple[Tensor, Tensor]:
    """Distinct finite values in order, and whether the code of each is even."""
    pairs = {v: c % 2 == 0 for c, v in reversed([*enumerate(fmt.values)]) if math.isfinite(v)}
    values = sorted(pairs)
    return torch.tensor(values, dtype=torch.float64), torch.tensor([pairs[v] for v in values])


def neighbours(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the largest value <= x and of the smallest >= x, and x clamped, in float64."""
    values, _ = table(fmt)
    x = x.double().clamp(values[0], values[-1])
    high = torch.searchsorted(values, x)
    low = torch.where(values[high] == x, high, high - 1)
    return low, high, x


def nearest(x: Tensor, fmt: Format, rounding: str = "nearest") -> Tensor:
    """The brute-force nearest value of every number, in the dtype of x (zeros without a sign)."""
    values, even = table(fmt)
    low, high, wide = neighbours(x, fmt)
    below, above = wide - values[low], values[high] - wide
    if fmt.is_power_of_two:
        tie_goes_up = torch.ones_like(low, dtype=torch.bool)
    elif fmt.is_table:
        tie_goes_up = torch.zeros_like(low, dtype=torch.bool)
    else:
        tie_goes_up = wide > 0 if rounding == "away" else even[high]
    up = (above < below) | ((above == below) & tie_goes_up)
    return values[torch.where(up, high, low)].to(x.dtype)


def codes_of(fmt: Format) -> Tensor:
    return torch.arange(2**fmt.bits).to(torch.uint8)


@every
def test_rounds_to_the_nearest_value(fmt: Format) -> None:
    x = domain(fmt)
    assert torch.equal(round_to(x, fmt), nearest(x, fmt))


@every
def test_idempotent_and_monotone(fmt: Format) -> None:
    x = domain(fmt, SORTED)
    y = round_to(x, fmt)
    assert same(round_to(y, fmt), y)
    assert bool((y[1:] >= y[:-1]).all())


@pytest.mark.parametrize("fmt", SIGNED_FLOATS, ids=str)
def test_odd_symmetric(fmt: Format) -> None:
    for saturate in (True, False):
        y = round_to(INPUTS, fmt, saturate=saturate)
        assert same(round_to(-INPUTS, fmt, saturate=saturate), -y)


@every
def test_decode_of_encode_is_round(fmt: Format) -> None:
    x = domain(fmt)
    if fmt.nan_code is not None:
        x = torch.cat([x, torch.tensor([torch.nan])])
    assert same(decode(encode(x, fmt), fmt), round_to(x, fmt))


@every
def test_encode_of_decode_is_the_code(fmt: Format) -> None:
    codes = codes_of(fmt)
    values = decode(codes, fmt)
    assert values.tolist() == pytest.approx(list(fmt.values), rel=0, abs=0, nan_ok=True)
    keep = values.isfinite()
    assert torch.equal(encode(values[keep], fmt), codes[keep])
    if fmt.nan_code is not None or not values.isnan().any():
        keep = ~values.isnan()
        assert torch.equal(encode(values[keep], fmt, saturate=False), codes[keep])


@every
def test_nan(fmt: Format) -> None:
    x = torch.tensor([1.0, torch.nan])
    assert round_to(x, fmt).isnan().tolist() == [False, True]
    if fmt.nan_code is None:
        with pytest.raises(UserError):
            encode(x, fmt)
    else:
        assert encode(x, fmt)[1] == fmt.nan_code


@every
def test_infinity_saturates(fmt: Format) -> None:
    x = domain(fmt, torch.tensor([torch.inf, -torch.inf]))
    expected = torch.tensor([fmt.max, fmt.min])[: len(x)]
    assert torch.equal(round_to(x, fmt), expected)
    assert torch.equal(decode(encode(x, fmt), fmt), expected)


@tops
def test_overflow_follows_the_top(fmt: Format) -> None:
    """Past the middle of max and the value that would follow it; the tie goes to the even code."""
    x = NUMBERS if fmt.signed else NUMBERS[NUMBERS >= 0]
    values, even = table(fmt)
    gap = float(values[-1] - values[-2])  # the step below max, halved where max opens a binade
    if math.frexp(fmt.max)[0] == 0.5 and fmt.max_exponent > fmt.min_exponent:
        gap *= 2
    limit = fmt.max + gap / 2
    over = x.abs() > limit if even[-1] else x.abs() >= limit
    special = x.sign() * torch.inf if fmt.top == "ieee" else torch.full_like(x, torch.nan)
    y = round_to(x, fmt, saturate=False)
    torch.testing.assert_close(
        y, torch.where(over, special, nearest(x, fmt)), rtol=0, atol=0, equal_nan=True
    )
    assert same(decode(encode(x, fmt, saturate=False), fmt), y)


@pytest.mark.parametrize("fmt", [f for f in ALL if f.top == "finite"], ids=str)
def test_a_finite_top_always_saturates(fmt: Format) -> None:
    x = domain(fmt)
    assert same(round_to(x, fmt, saturate=False), round_to(x, fmt))


@pytest.mark.parametrize("rounding", ["nearest", "away", "stochastic"])
@pytest.mark.parametrize("fmt", FLOATS + INTEGERS, ids=str)
def test_sign_of_zero(fmt: Format, rounding: str) -> None:
    keeps = fmt.signed and not fmt.is_integer
    x = torch.tensor([0.0, -0.0, -1e-30])
    y = round_to(x, fmt, rounding=rounding)  # type: ignore[arg-type]
    assert y.signbit().tolist() == [False, keeps, keeps]
    if not fmt.signed:
        assert not round_to(NUMBERS, fmt, rounding=rounding).signbit().any()  # type: ignore[arg-type]


@every
def test_fp32_subnormals(fmt: Format) -> None:
    x = torch.tensor([1, 2**10, 2**22, 2**23 - 1], dtype=torch.int32).view(torch.float32)
    x = domain(fmt, torch.cat([x, -x]))
    y = round_to(x, fmt)
    assert torch.equal(y, nearest(x, fmt))
    assert same(decode(encode(x, fmt), fmt), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@every
def test_dtype_is_kept(fmt: Format, dtype: torch.dtype) -> None:
    """All bfloat16 or float16 numbers; a value beyond the dtype becomes what its cast gives."""
    if dtype == torch.float16:
        x = BF16.view(torch.float16)
        x = domain(fmt, x[~x.isnan()])
    else:
        x = domain(fmt, BF16[~BF16.isnan()]).to(dtype)
    y = round_to(x, fmt)
    wide = nearest(x.float(), fmt).double() if fmt.is_table else nearest(x.double(), fmt)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize("fmt", [f for f in FLOATS + INTEGERS if f.max > 0], ids=str)
def test_float64_is_not_rounded_twice(fmt: Format) -> None:
    """Just beside a tie, within what float32 cannot tell apart."""
    values, _ = table(fmt)
    middle = (values[1:] + values[:-1]) / 2
    for direction in (-torch.inf, torch.inf):
        x = torch.nextafter(middle, torch.full_like(middle, direction))
        x = x[x.abs() > 1e-300]
        assert torch.equal(round_to(x, fmt), nearest(x, fmt))
        assert torch.equal(decode(encode(x, fmt), fmt).double(), nearest(x, fmt))


@modes
def test_away(fmt: Format) -> None:
    assert torch.equal(round_to(NUMBERS, fmt, rounding="away"), nearest(NUMBERS, fmt, "away"))


@modes
def test_stochastic_takes_a_neighbour(fmt: Format) -> None:
    draws = [
        round_to(NUMBERS, fmt, rounding="stochastic", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert same(draws[0], draws[1])
    values, _ = table(fmt)
    low, high, _ = neighbours(NUMBERS, fmt)
    for y in draws:
        assert bool(((y.double() == values[low]) | (y.double() == values[high])).all())
    assert round_to(torch.tensor([torch.nan]), fmt, rounding="stochastic").isnan().all()


@modes
def test_stochastic_is_unbiased(fmt: Format) -> None:
    count = 20_000
    values, _ = table(fmt)
    gaps = values.diff()
    share = torch.linspace(0.07, 0.93, len(gaps), dtype=torch.float64)
    x = (values[:-1] + share * gaps).float()
    picks = torch.linspace(0, len(x) - 1, min(len(x), 9)).long()
    x, low, gap = x[picks], values[:-1][picks], gaps[picks]
    generator = torch.Generator().manual_seed(0)
    y = round_to(x.repeat(count, 1), fmt, rounding="stochastic", generator=generator)
    chance = (x.double() - low) / gap
    sigma = gap * (chance * (1 - chance) / count).sqrt()
    assert bool(((y.double().mean(0) - x.double()).abs() <= 4 * sigma).all())


@pytest.mark.parametrize("fmt", FLOATS + INTEGERS + [NF4], ids=str)
def test_gradient_is_one_inside_and_zero_outside(fmt: Format) -> None:
    span = fmt.max - fmt.min + 1
    x = torch.tensor(
        [fmt.min, fmt.max, (fmt.min + fmt.max) / 3, fmt.max + span, fmt.min - span],
        requires_grad=True,
    )
    y = round_to(x, fmt)
    y.backward(torch.full_like(y, 3.0))
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3, 3, 0, 0]
    assert same(y.detach(), round_to(x.detach(), fmt))


@pytest.mark.parametrize("fmt", POWERS, ids=str)
def test_round_power_of_two(fmt: Format) -> None:
    values, _ = table(fmt)
    x = NUMBERS[(NUMBERS > 0) & NUMBERS.isfinite()]
    low, high, _ = neighbours(x, fmt)
    assert torch.equal(round_power_of_two(x, fmt, "up").double(), values[high])
    assert torch.equal(round_power_of_two(x, fmt, "down").double(), values[low])
    assert torch.equal(round_power_of_two(x, fmt, "nearest"), nearest(x, fmt))


@pytest.mark.parametrize("direction", ["nearest", "up", "down"])
@pytest.mark.parametrize("fmt", POWERS, ids=str)
def test_powers_of_zero_and_infinity_are_the_extremes(fmt: Format, direction: str) -> None:
    y = round_power_of_two(torch.tensor([0.0, torch.inf]), fmt, direction)  # type: ignore[arg-type]
    assert y.tolist() == [fmt.min, fmt.max]


@pytest.mark.parametrize("fmt", POWERS, ids=str)
def test_powers_of_two_have_no_negative_numbers(fmt: Format) -> None:
    assert round_to(torch.tensor([-1.0, -torch.inf, torch.nan]), fmt).isnan().all()


@pytest.mark.parametrize("fmt", [integer(4), NF4, E8M0, POW4, SIGNED_FLOATS[-1]], ids=str)
def test_shapes_and_strides(fmt: Format) -> None:
    x = torch.rand(50, 3000, generator=torch.Generator().manual_seed(0)) + 0.01
    whole = round_to(x, fmt)
    assert same(round_to(x.t(), fmt).t().contiguous(), whole)
    assert same(decode(encode(x.t(), fmt), fmt).t().contiguous(), whole)
    for shape in ((0, 4), ()):
        empty = torch.ones(shape)
        assert round_to(empty, fmt).shape == encode(empty, fmt).shape == empty.shape
