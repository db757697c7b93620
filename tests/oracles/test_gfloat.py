"""Oracle: gfloat, an independent description of formats, agrees on every signed ExMy float."""

import numpy as np
import pytest
import torch
from gfloat import Domain, FormatInfo, RoundMode, decode_float, decode_ndarray, round_ndarray
from gfloat import formats as shipped

from minifloat.formats import Format
from minifloat.rounding import decode, round_to
from tests.laws.test_formats import SIGNED_FLOATS

FINITE = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).double()
FINITE = FINITE[FINITE.isfinite()]

OCP = {
    "e2m1": shipped.format_info_ocp_e2m1,
    "e2m3": shipped.format_info_ocp_e2m3,
    "e3m2": shipped.format_info_ocp_e3m2,
    "e4m3": shipped.format_info_ocp_e4m3,
    "e5m2": shipped.format_info_ocp_e5m2,
}


def described(fmt: Format) -> FormatInfo:
    nans = {"finite": 0, "nan": 1, "ieee": 2**fmt.mantissa_bits - 1}
    return FormatInfo(
        fmt.name,
        fmt.bits,
        fmt.mantissa_bits + 1,
        bias=fmt.bias,
        is_signed=True,
        domain=Domain.Extended if fmt.top == "ieee" else Domain.Finite,
        has_nz=True,
        num_high_nans=nans[fmt.top],
        has_subnormals=True,
        is_twos_complement=False,
    )


# Of e1m0.nan only zero is left, for which gfloat derives no maximum.
CASES = [pytest.param(f, described(f), id=f.name) for f in SIGNED_FLOATS if f.max > 0] + [
    pytest.param(Format.parse(name), info, id=info.name) for name, info in OCP.items()
]


def same(ours: torch.Tensor, theirs: np.ndarray) -> bool:
    a, b = ours.double().numpy(), theirs.astype(np.float64)
    equal = (a == b) & (np.signbit(a) == np.signbit(b))
    return bool((equal | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize(("fmt", "info"), CASES)
def test_codes_decode_alike(fmt: Format, info: FormatInfo) -> None:
    codes = np.arange(2**fmt.bits)
    ours = decode(torch.from_numpy(codes).to(torch.uint8), fmt)
    assert same(ours, decode_ndarray(info, codes))
    assert same(ours, np.array([decode_float(info, int(code)).fval for code in codes]))
    assert (fmt.max, fmt.min) == (info.max, info.min)


@pytest.mark.parametrize(("fmt", "info"), CASES)
def test_rounds_alike(fmt: Format, info: FormatInfo) -> None:
    theirs = round_ndarray(info, FINITE.numpy(), RoundMode.TiesToEven, sat=True)
    assert same(round_to(FINITE, fmt), theirs)
    assert same(round_to(FINITE.float(), fmt), theirs)


@pytest.mark.parametrize(("fmt", "info"), [c for c in CASES if c.values[0].top != "finite"])
def test_overflows_alike(fmt: Format, info: FormatInfo) -> None:
    theirs = round_ndarray(info, FINITE.numpy(), RoundMode.TiesToEven, sat=False)
    assert same(round_to(FINITE.float(), fmt, saturate=False), theirs)


@pytest.mark.parametrize("name", ["e2m1", "e3m0", "e4m3", "e4m3.finite", "e5m2", "e6m1"])
def test_ties_away_alike(name: str) -> None:
    fmt = Format.parse(name)
    theirs = round_ndarray(described(fmt), FINITE.numpy(), RoundMode.TiesToAway, sat=True)
    assert same(round_to(FINITE.float(), fmt, rounding="away"), theirs)


def test_e8m0_decodes_alike() -> None:
    codes = np.arange(256)
    ours = decode(torch.from_numpy(codes).to(torch.uint8), Format.parse("e8m0"))
    assert same(ours, decode_ndarray(shipped.format_info_ocp_e8m0, codes))
