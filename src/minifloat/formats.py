"""A number format as a value: everything about an element type is asked of one small record.

Floating-point formats follow IEEE 754 and the OCP 8-bit and MX specifications: a sign bit, E exponent
bits, M mantissa bits, an integer bias and subnormals. What varies is the top of the range (`top`):

    finite   every code is a number (OCP FP4 and FP6; Kuzmin et al. 2022, arXiv 2208.09225)
    nan      only the all-ones magnitude is NaN (OCP E4M3, E8M0)
    ieee     the all-ones exponent holds Inf (mantissa 0) and NaN (OCP E5M2)

Two families need no rule of their own:

- an integer has no exponent bits, so all its codes are subnormal with step 1. Signed integers are
  two's complement (-8..7), as ml_dtypes, compressed-tensors and every integer kernel store them;
- a power of two (E8M0) has no mantissa bits and no zero.

NF4 (Dettmers et al. 2023, arXiv 2305.14314) is the one lookup table. A *real* bias is not a field:
it multiplies every value by one constant, which is what the scale of a `QuantSpec` does.
Nothing but the fields is typed by hand: max, step, values and names are derived.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from minifloat.errors import UserError, unknown

Top = Literal["finite", "nan", "ieee"]

# Formats of more than 8 bits serve only as scales and are stored as the native dtype.
_NATIVE = {(8, 23): "fp32", (8, 7): "bf16", (5, 10): "fp16"}


@dataclass(frozen=True)
class Format:
    """An element type of 2 to 8 bits, or one of fp16, bf16, fp32 for scales.

    Attributes:
        exponent_bits: E; 0 makes an integer.
        mantissa_bits: M, the explicit fraction bits.
        bias: exponent bias; the smallest normal number is 2^(1 - bias).
        top: what the largest codes mean, see the module.
        signed: whether the highest bit is a sign (two's complement for integers).
        zero: whether code 0 is zero; False gives the powers of two (no subnormals).
        levels: the values of a table format by code, else None.
        max: largest finite value, derived.
        min: most negative finite value, derived; 0 for unsigned formats, the smallest power of two
            for E8M0.
        values: the value of every code in their order, derived; empty beyond 8 bits.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    top: Top = "finite"
    signed: bool = True
    zero: bool = True
    levels: tuple[float, ...] | None = None
    max: float = field(init=False, compare=False, repr=False)
    min: float = field(init=False, compare=False, repr=False)
    values: tuple[float, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 and (self.exponent_bits, self.mantissa_bits) not in _NATIVE:
            raise UserError(f"a format has 2 to 8 bits, not {self.bits}")
        if self.top == "ieee" and self.exponent_bits < 2:
            raise UserError(
                "an IEEE top needs at least 2 exponent bits: one value holds Inf and NaN"
            )
        # Derived once: torch.compile cannot follow a cached property, which holds a lock.
        object.__setattr__(self, "max", self._max())
        object.__setattr__(self, "min", self._min())
        codes = () if self.is_native else range(2**self.bits)
        object.__setattr__(self, "values", tuple(self.value(code) for code in codes))

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def is_integer(self) -> bool:
        return self.exponent_bits == 0 and self.levels is None

    @property
    def is_table(self) -> bool:
        return self.levels is not None

    @property
    def is_native(self) -> bool:
        """Whether values are stored as torch's own dtype (fp16, bf16, fp32) and not as codes."""
        return self.bits > 8

    @property
    def is_power_of_two(self) -> bool:
        """Whether every value is a power of two: no mantissa, no zero, no sign (E8M0)."""
        return not self.zero

    @property
    def min_exponent(self) -> int:
        """Exponent of the binade that the subnormals share with the smallest normal number."""
        return 1 - self.bias if self.zero else -self.bias

    def _max(self) -> float:
        if self.levels is not None:
            return max(self.levels)
        if self.is_integer:
            return float(2**self.mantissa_bits - 1)
        field = (1 << self.exponent_bits) - 1 - (self.top == "ieee")
        fraction = (1 << self.mantissa_bits) - 1
        if self.top == "nan" and self.mantissa_bits == 0:
            field -= 1
        elif self.top == "nan":
            fraction -= 1
        if field == 0:  # only E1 with a NaN and no mantissa; kept for completeness
            return fraction * self.step
        return math.ldexp(1 + fraction / 2**self.mantissa_bits, field - self.bias)

    def _min(self) -> float:
        if self.levels is not None:
            return min(self.levels)
        if not self.zero:
            return math.ldexp(1.0, -self.bias)
        if not self.signed:
            return 0.0
        return -self.max - 1 if self.is_integer else -self.max

    @property
    def step(self) -> float:
        """Spacing of the subnormals, which is the smallest positive value."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa_bits)

    @property
    def max_exponent(self) -> int:
        """floor(log2(max)): the `emax` of the MX specification."""
        return math.frexp(self.max)[1] - 1

    @property
    def nan_code(self) -> int | None:
        """The code that NaN is written as, None where the format has none."""
        if self.top == "finite" or (self.top == "ieee" and self.mantissa_bits == 0):
            return None
        if self.top == "nan":
            return (1 << self.exponent_bits + self.mantissa_bits) - 1
        return self.infinity_code + (1 << self.mantissa_bits - 1)  # quiet NaN

    @property
    def infinity_code(self) -> int:
        """The code of +Inf in a format with an IEEE top."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    def value(self, code: int) -> float:
        """The number that a code stands for, by definition; the readable twin of `rounding.decode`."""
        if self.levels is not None:
            return self.levels[code]
        if self.is_integer:
            wraps = self.signed and code >= 2**self.mantissa_bits
            return float(code - 2**self.bits if wraps else code)
        magnitude = code % (1 << self.exponent_bits + self.mantissa_bits)
        sign = -1.0 if magnitude != code else 1.0
        field, fraction = divmod(magnitude, 1 << self.mantissa_bits)
        if self.top == "nan" and magnitude == self.nan_code:
            return math.nan
        if self.top == "ieee" and field == 2**self.exponent_bits - 1:
            return math.nan if fraction else sign * math.inf
        if field == 0 and self.zero:
            return sign * fraction * self.step
        return sign * math.ldexp(1 + fraction / 2**self.mantissa_bits, field - self.bias)

    @property
    def name(self) -> str:
        """The name that `Format.parse` reads back, e.g. 'e4m3', 'ue3m3', 'e3m4.ieee', 'int4'."""
        if self.levels is not None:
            return "nf4"
        if self.is_native:
            return _NATIVE[self.exponent_bits, self.mantissa_bits]
        if self.is_integer:
            return f"{'' if self.signed else 'u'}int{self.bits}"
        if self in _SHORT_NAMES:
            return _SHORT_NAMES[self]
        stem = "pow" if not self.zero else ("" if self.signed else "u")
        bias = "" if self.bias == _default_bias(self.exponent_bits) else f"b{self.bias}"
        top = "" if self.top == _default_top(self) else f".{self.top}"
        return f"{stem}e{self.exponent_bits}m{self.mantissa_bits}{bias}{top}"

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def parse(name: str) -> "Format":
        """The format of a name.

        Names are `e2m1`, unsigned `ue3m3`, with another bias `e4m3b11`, with another top
        `e4m3.finite|.nan|.ieee`, `int4`, `uint4`, `nf4`, `e8m0`, `fp16`, `bf16`, `fp32`.
        """
        text = name.strip().lower()
        if text in FORMATS:
            return FORMATS[text]
        if match := re.fullmatch(r"(u?)int(\d)", text):
            return integer(int(match[2]), signed=not match[1])
        if match := re.fullmatch(r"(u|pow)?e(\d)m(\d)(?:b(\d+))?(?:\.(finite|nan|ieee))?", text):
            stem, exponent, mantissa, bias, top = match.groups()
            if exponent != "0":
                return floating(
                    int(exponent),
                    int(mantissa),
                    bias=None if bias is None else int(bias),
                    top=top,  # type: ignore[arg-type]  # the pattern allows only the three tops
                    signed=stem is None,
                    zero=stem != "pow",
                )
        raise unknown("format", name, [*FORMATS, *(f"int{n}" for n in range(2, 9))])


def _default_bias(exponent_bits: int) -> int:
    return int(2 ** (exponent_bits - 1)) - 1


def _default_top(fmt: Format) -> Top:
    """What a bare name means: OCP's E4M3 has one NaN, OCP's E5M2 is IEEE, the others are finite."""
    tops: dict[tuple[int, int], Top] = {(4, 3): "nan", (5, 2): "ieee"}
    if not fmt.signed:
        return "finite"
    return tops.get((fmt.exponent_bits, fmt.mantissa_bits), "finite")


def floating(
    exponent_bits: int,
    mantissa_bits: int,
    *,
    bias: int | None = None,
    top: Top | None = None,
    signed: bool = True,
    zero: bool = True,
) -> Format:
    """A floating-point format; bias and top default to those of the OCP specifications."""
    chosen = _default_bias(exponent_bits) if bias is None else bias
    plain = Format(exponent_bits, mantissa_bits, chosen, "finite", signed and zero, zero)
    if top is None:
        top = _default_top(plain)
    return Format(exponent_bits, mantissa_bits, chosen, top, signed and zero, zero)


def integer(bits: int, *, signed: bool = True) -> Format:
    """INT2 to INT8 (two's complement) or UINT2 to UINT8: no exponent bits, step 1."""
    mantissa_bits = bits - signed
    return Format(0, mantissa_bits, 1 - mantissa_bits, signed=signed)


# The sixteen quantiles of a normal distribution, from the reference values of QLoRA's appendix E.
_NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

FP32, BF16, FP16 = (floating(e, m, top="ieee") for e, m in _NATIVE)

E8M0 = Format(8, 0, 127, "nan", signed=False, zero=False)
# 2^-14 .. 2^0 and one spare code: the ratios of ZeroQuant-FP's M2, within what E4M3 can shift exactly.
POW4 = Format(4, 0, 14, "nan", signed=False, zero=False)
_SHORT_NAMES = {E8M0: "e8m0", POW4: "pow4"}

E2M1, E1M2, E3M0 = floating(2, 1), floating(1, 2), floating(3, 0)
E2M3, E3M2 = floating(2, 3), floating(3, 2)
E4M3, E5M2, E3M4, E2M5 = floating(4, 3), floating(5, 2), floating(3, 4), floating(2, 5)
INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (integer(bits) for bits in range(2, 9))
UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8 = (integer(n, signed=False) for n in range(2, 9))
NF4 = Format(0, 3, 0, levels=_NF4_LEVELS)

FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        E2M1, E1M2, E3M0, E2M3, E3M2, E4M3, E5M2, E3M4, E2M5, E8M0, POW4, NF4,
        INT2, INT3, INT4, INT5, INT6, INT7, INT8,
        UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8, FP16, BF16, FP32,
    )
}  # fmt: skip
