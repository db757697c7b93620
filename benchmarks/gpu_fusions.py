"""Microseconds of a norm, modulation or gate and of putting its result on the layer's grid.

Part of `benchmarks.kernels_gpu`. "fused" is one kernel; "apart" is torch's own function in bf16 and then
our kernel for the grid; "compiled" is torch's function and a plain cast to FP8 by torch.compile. The
memory limit counts what must be read and written once. Fused codes are compared with those of the
readable twin before they are timed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_time import microseconds
from minifloat.kernels.fast import quantize_activation
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.fusion import quantize_activation as twin
from minifloat.spec import FP8_TOKEN

SIZES = ((1, 4096), (16, 4096), (256, 4096), (4096, 4096), (4096, 14336))
Way = Callable[[Tensor], object]


def cases(tokens: int, columns: int) -> dict[str, tuple[Fusion, Callable[[Tensor], Tensor]]]:
    """Each function as ours takes it, and as torch computes it."""
    bf16: Any = {"device": "cuda", "dtype": torch.bfloat16}
    weight, other = torch.rand(columns, **bf16), torch.randn(tokens, columns, **bf16)
    gain, shift = torch.randn(2, 1, columns, **bf16)

    def adaln(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (columns,), eps=1e-6) * (1 + gain) + shift

    return {
        "RMSNorm": (
            Fusion("rms", 1e-6, weight),
            lambda x: functional.rms_norm(x, (columns,), weight, 1e-6),
        ),
        "AdaLN": (Fusion("layer", 1e-6, gain=gain, shift=shift), adaln),
        "SiLU-mul": (Fusion("silu_mul", other=other), lambda x: functional.silu(x) * other),
        "GELU": (Fusion("gelu_tanh"), lambda x: functional.gelu(x, approximate="tanh")),
    }


def cast(y: Tensor) -> tuple[Tensor, Tensor]:
    """To E4M3 with a scale a token, in a few words of torch."""
    scale = y.abs().amax(-1, keepdim=True).float() / 448
    return (y.float() / scale).to(torch.float8_e4m3fn), scale


def ways(done: Fusion, plain: Callable[[Tensor], Tensor]) -> dict[str, Way]:
    torch.compiler.reset()
    return {
        "fused": lambda x: quantize_activation(x, FP8_TOKEN, None, done),
        "apart": lambda x: quantize_activation(plain(x), FP8_TOKEN),
        "compiled": torch.compile(lambda x: cast(plain(x))),
    }


def check(x: Tensor, done: Fusion) -> None:
    """Scales agree, and all but a few codes."""
    codes, scale = quantize_activation(x, FP8_TOKEN, None, done)
    expected, expected_scale = twin(x, FP8_TOKEN, None, done)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-5, atol=0)
    if float((codes.float() != expected.float()).float().mean()) > 1e-2:
        raise SystemExit(f"{done.kind}: fused codes are not those of the readable twin")


def measure(speed: float) -> list[dict[str, Any]]:
    """One row for every size and function; `speed` is in bytes a microsecond."""
    rows = []
    for tokens, columns in SIZES:
        x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
        for name, (done, plain) in cases(tokens, columns).items():
            check(x, done)
            read = 4 if done.other is not None else 2
            us = {way: microseconds([call] * 8, x) for way, call in ways(done, plain).items()}
            limit = tokens * columns * (read + 1) / speed
            rows.append(
                {"name": name, "tokens": tokens, "columns": columns, "us": us} | {"limit": limit}
            )
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds; in brackets the ratio of what is apart to the fused, and its share of the limit."""
    lines = ["| function | tokens | columns | fused | apart | compiled |", "|---" * 6 + "|"]
    for row in rows:
        us = row["us"]
        ratio, share = us["apart"] / us["fused"], row["limit"] / us["fused"]
        cells = f"{us['fused']:.1f} ({ratio:.2f}x, {share:.0%}) | {us['apart']:.1f}"
        size = f"{row['tokens']} | {row['columns']}"
        lines.append(f"| {row['name']} | {size} | {cells} | {us['compiled']:.1f} |")
    return "\n".join(lines)
