"""Oracle: ml_dtypes stores the same values under the same codes and casts every bfloat16 alike."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from minifloat.formats import E8M0, Format
from minifloat.rounding import decode, encode, round_to

NUMBERS = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
NUMBERS = NUMBERS[~NUMBERS.isnan()]

FLOATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3.ieee": ml_dtypes.float8_e4m3,
    "e3m4.ieee": ml_dtypes.float8_e3m4,
}
INTEGERS = {
    "int2": ml_dtypes.int2,
    "int4": ml_dtypes.int4,
    "uint2": ml_dtypes.uint2,
    "uint4": ml_dtypes.uint4,
}


def cast(x: Tensor, dtype: Any) -> np.ndarray:
    with np.errstate(all="ignore"):
        return x.numpy().astype(dtype)


def floats(stored: np.ndarray) -> Tensor:
    return torch.from_numpy(stored.astype(np.float32))


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    nan = ours.isnan()
    assert torch.equal(nan, theirs.isnan())
    assert torch.equal(ours[~nan].view(torch.int32), theirs[~nan].view(torch.int32))


@pytest.mark.parametrize("name", [*FLOATS, "e8m0"])
def test_float_codes_decode_alike(name: str) -> None:
    fmt = Format.parse(name)
    dtype = FLOATS.get(name, ml_dtypes.float8_e8m0fnu)
    codes = np.arange(2**fmt.bits, dtype=np.uint8)
    assert_same(decode(torch.from_numpy(codes), fmt), floats(codes.view(dtype)))


@pytest.mark.parametrize("name", FLOATS)
def test_floats_round_alike(name: str) -> None:
    fmt = Format.parse(name)
    stored = cast(NUMBERS, FLOATS[name])
    expected = floats(stored)
    assert_same(round_to(NUMBERS, fmt, saturate=False), expected)
    codes = encode(NUMBERS, fmt, saturate=False)
    keep = ~expected.isnan()  # the sign and payload of a NaN are free
    assert torch.equal(codes[keep], torch.from_numpy(stored.view(np.uint8))[keep])
    assert decode(codes[~keep], fmt).isnan().all()


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_agree(name: str) -> None:
    """ml_dtypes truncates and wraps, so it is given numbers that are already rounded."""
    fmt = Format.parse(name)
    rounded = NUMBERS.clamp(fmt.min, fmt.max).round()
    stored = cast(rounded, INTEGERS[name])
    assert torch.equal(round_to(NUMBERS, fmt), floats(stored))
    bits = torch.from_numpy(stored.astype(np.int8).view(np.uint8)) & (2**fmt.bits - 1)
    assert torch.equal(encode(NUMBERS, fmt), bits)
    assert torch.equal(decode(bits, fmt), floats(stored))
    assert set(stored.astype(int).tolist()) == set(map(int, fmt.values))


def test_e8m0_rounds_alike() -> None:
    """Numbers in [2^-126, 1.5 * 2^127).

    From 1.5 * 2^127 on, ml_dtypes rounds up to 2^128 and gives NaN; ours saturates, because a scale
    that is NaN would lose its whole block.
    """
    x = NUMBERS[(NUMBERS >= 2.0**-126) & (NUMBERS < 1.5 * 2.0**127)]
    stored = cast(x, ml_dtypes.float8_e8m0fnu)
    assert_same(round_to(x, E8M0), floats(stored))
    assert torch.equal(encode(x, E8M0), torch.from_numpy(stored.view(np.uint8)))
