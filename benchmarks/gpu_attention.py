"""Microseconds of attention of one new token over keys and values in few bits (Llama-3-8B's heads).

Part of `benchmarks.kernels_gpu`. The peer is torch's attention over bf16. The memory limit is the time
that the stored bytes take at the measured bandwidth. Every row is compared with the reference before it
is timed, and the bytes a token are what the spec says.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_time import copies, microseconds
from minifloat import formats
from minifloat.kernels import fast, reference
from minifloat.kernels.states import States
from minifloat.kernels.table import pick
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, UINT4_TOKEN, CacheSpec, QuantSpec

HEADS, SHARED, WIDTH = 32, 8, 128
OURS = {
    "kv4 uint4 zero": UINT4_TOKEN,
    "kv4 e2m1 g16": QuantSpec(formats.E2M1, (1, 16), formats.FP16),
    "kv8 e4m3": FP8_TOKEN,
    "kv8 int8": INT8_TOKEN,
}
SIZES = ((1, 1024), (1, 8192), (1, 65536), (16, 1024), (16, 8192), (64, 1024))
SCALING = WIDTH**-0.5


def ours(keys: Tensor, values: Tensor, spec: QuantSpec, q: Tensor) -> tuple[list[Any], int]:
    """Copies of a call, checked against the reference, and the stored bytes of one."""
    row = pick("attention_kv", CacheSpec(spec, spec), "cuda").name
    if row != "triton":
        raise SystemExit(f"attention over {spec} runs the row {row}, not triton")
    k, v = States.of(keys, spec), States.of(values, spec)
    found = fast.attention_kv(q, k, v, None, SCALING)
    expected = reference.attention_kv(q.float(), k, v, None, SCALING)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    size = k.nbytes + v.nbytes
    return [_ours(_copy(k), _copy(v)) for _ in range(copies(size))], size


def _ours(k: States, v: States) -> Callable[[Tensor], Tensor]:
    return lambda q: fast.attention_kv(q, k, v, None, SCALING)


def _copy(states: States) -> States:
    return states.through([part.clone() for part in states.tensors()])


def peer(keys: Tensor, values: Tensor) -> list[Callable[[Tensor], Tensor]]:
    count = copies(2 * (keys.numel() + values.numel()))
    return [_sdpa(keys.bfloat16(), values.bfloat16()) for _ in range(count)]


def _sdpa(k: Tensor, v: Tensor) -> Callable[[Tensor], Tensor]:
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda q: attend(q, k, v, scale=SCALING, enable_gqa=True)


def measure(speed: float) -> list[dict[str, Any]]:
    """One row for every number of sequences and tokens; `speed` is in bytes a microsecond."""
    rows = []
    for batch, tokens in SIZES:
        generator = torch.Generator("cuda").manual_seed(0)
        shape = (batch, SHARED, tokens, WIDTH)
        keys, values = (torch.randn(shape, generator=generator, device="cuda") for _ in range(2))
        q = torch.randn(batch, HEADS, 1, WIDTH, generator=generator, device="cuda").bfloat16()
        row: dict[str, Any] = {"batch": batch, "tokens": tokens, "limit": {}}
        row["us"] = {"torch bf16": microseconds(peer(keys, values), q)}
        for name, spec in OURS.items():
            calls, size = ours(keys, values, spec, q)
            row["us"][name] = microseconds(calls, q)
            row["limit"][name] = size / speed
        new = keys[:, :, :1].bfloat16()
        row["us"]["write"] = microseconds([lambda _, x=new: fast.states(x, UINT4_TOKEN)] * 8, q)
        rows.append(row)
        print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Microseconds; in brackets the ratio to torch and the share of the memory limit. The last column
    is what it takes to put the keys of one new token on the grid of the first."""
    lines = [
        "| sequences | tokens | torch bf16 | " + " | ".join(OURS) + " | write keys |",
        "|---" * (4 + len(OURS)) + "|",
    ]
    for row in rows:
        us, limit = row["us"], row["limit"]
        cells = [
            f"{us[n]:.1f} ({us['torch bf16'] / us[n]:.2f}x, {limit[n] / us[n]:.0%})" for n in OURS
        ]
        first = f"| {row['batch']} | {row['tokens']} | {us['torch bf16']:.1f} | "
        lines.append(first + " | ".join(cells) + f" | {us['write']:.1f} |")
    return "\n".join(lines)
