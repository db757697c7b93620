"""Oracle: torch's own casts to float8 give the same codes for every bfloat16 and many float32."""

import pytest
import torch
from torch import Tensor

from minifloat.formats import E4M3, E5M2, Format
from minifloat.rounding import decode, encode, round_to

BF16 = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).float()
FP32 = torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(
    -6, 6, 1 << 16, base=10
)
NUMBERS = torch.cat([BF16, FP32])

# torch's CPU cast to float8_e4m3fn saturates (finite inputs); its cast to float8_e5m2 gives Inf.
CASES = [
    pytest.param(E4M3, torch.float8_e4m3fn, True, NUMBERS[NUMBERS.isfinite()], id="e4m3"),
    pytest.param(E5M2, torch.float8_e5m2, False, NUMBERS[~NUMBERS.isnan()], id="e5m2"),
]


@pytest.mark.parametrize(("fmt", "dtype", "saturate", "x"), CASES)
def test_casts_alike(fmt: Format, dtype: torch.dtype, saturate: bool, x: Tensor) -> None:
    stored = x.to(dtype)
    rounded = round_to(x, fmt, saturate=saturate)
    assert torch.equal(rounded.view(torch.int32), stored.float().view(torch.int32))
    assert torch.equal(encode(x, fmt, saturate=saturate), stored.view(torch.uint8))


@pytest.mark.parametrize(("fmt", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)])
def test_codes_decode_alike(fmt: Format, dtype: torch.dtype) -> None:
    codes = torch.arange(256).to(torch.uint8)
    torch.testing.assert_close(
        decode(codes, fmt), codes.view(dtype).float(), rtol=0, atol=0, equal_nan=True
    )
