"""One table of kernels: rows best first, the reference last, and `pick` to choose.

Set MINIFLOAT_KERNEL to a row's name to force it, for the ops that have it. Fast rows join this
table; nothing else changes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from minifloat.errors import UserError, unknown
from minifloat.kernels import fast, fusion, native, reference
from minifloat.kernels.gpu import recipe as gpu
from minifloat.kernels.native import attention as native_attention
from minifloat.kernels.native import states as native_states
from minifloat.spec import CacheSpec, LayerSpec, QuantSpec

# What an op is asked to compute with.
Spec = LayerSpec | CacheSpec | QuantSpec


@dataclass(frozen=True)
class Kernel:
    """A row: which op it runs, on which device type ('*' for any), and why it refuses a spec, if so."""

    op: str
    name: str
    device: str
    refuses: Callable[[Any], str]
    run: Callable[..., Any]


KERNELS: tuple[Kernel, ...] = (
    Kernel("linear", "cpu", "cpu", native.refuses, fast.linear),
    Kernel("linear", "triton", "cuda", gpu.refuses, fast.linear),
    Kernel("linear", "reference", "*", lambda spec: "", reference.linear),
    Kernel("conv2d", "cpu", "cpu", native.refuses, fast.conv2d),
    Kernel("conv2d", "reference", "*", lambda spec: "", reference.conv2d),
    Kernel("embedding", "reference", "*", lambda spec: "", reference.embedding),
    Kernel("any conv2d", "reference", "*", lambda spec: "", reference.conv2d),
    Kernel(
        "quantize_activation", "triton", "cuda", gpu.refuses_activation, fast.quantize_activation
    ),
    Kernel("quantize_activation", "reference", "*", fusion.refuses, fusion.quantize_activation),
    Kernel("states", "cpu", "cpu", native_states.refuses, fast.put_states),
    Kernel("states", "triton", "cuda", gpu.refuses_states, fast.put_states),
    Kernel("states", "reference", "*", lambda spec: "", reference.put_states),
    Kernel("attention_kv", "cpu", "cpu", native_attention.refuses, fast.attention_kv),
    Kernel("attention_kv", "triton", "cuda", gpu.refuses_cache, fast.attention_kv),
    Kernel("attention_kv", "reference", "*", lambda spec: "", reference.attention_kv),
)


def pick(op: str, spec: Spec, device: str) -> Kernel:
    """The first row that runs this op for this spec on this device."""
    return KERNELS[place(op, spec, device)]


def place(op: str, spec: Spec, device: str) -> int:
    """Its place in the table."""
    row: int = _pick(op, spec, device)
    return row


def pick_attention(keys: QuantSpec, values: QuantSpec, device: str) -> Kernel:
    """The same for attention over keys and values; a compiler cannot make a `CacheSpec` of them."""
    row: int = _pick_attention(keys, values, device)
    return KERNELS[row]


def why(op: str, spec: Spec, device: str) -> str:
    """Which faster rows this layer does without, and why; empty if there are none."""
    chosen = KERNELS.index(pick(op, spec, device))
    faster = [row for row in KERNELS[:chosen] if row.op == op and row.device == device]
    return "; ".join(f"{row.name}: {row.refuses(spec) or 'not chosen'}" for row in faster)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _pick(op: str, spec: Spec, device: str) -> int:
    """Its place in the table: a number, which a compiler can take as given without a look at why."""
    return _search(op, spec, device, os.environ.get("MINIFLOAT_KERNEL"))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _pick_attention(keys: QuantSpec, values: QuantSpec, device: str) -> int:
    row: int = _pick("attention_kv", _cache_spec(keys, values), device)
    return row


_cache_spec = lru_cache(maxsize=1024)(CacheSpec)


@lru_cache(maxsize=1024)
def _search(op: str, spec: Spec, device: str, forced: str | None) -> int:
    names = {row.name for row in KERNELS}
    if forced and forced not in names:
        raise unknown("kernel", forced, names)
    rows = [row for row in KERNELS if row.op == op and row.device in ("*", device)]
    tried = [row for row in rows if row.name == forced] or rows
    for row in tried:
        if not row.refuses(spec):
            return KERNELS.index(row)
    reasons = "; ".join(f"{row.name}: {row.refuses(spec)}" for row in tried)
    raise UserError(f"no kernel can run {op} ({reasons})")
