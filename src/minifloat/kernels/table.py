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
from minifloat.kernels import fast, native, reference
from minifloat.kernels.gpu import recipe as gpu
from minifloat.spec import LayerSpec


@dataclass(frozen=True)
class Kernel:
    """A row: which op it runs, on which device type ('*' for any), and why it refuses a spec, if so."""

    op: str
    name: str
    device: str
    refuses: Callable[[LayerSpec], str]
    run: Callable[..., Any]


KERNELS: tuple[Kernel, ...] = (
    Kernel("linear", "cpu", "cpu", native.refuses, fast.linear),
    Kernel("linear", "triton", "cuda", gpu.refuses, fast.linear),
    Kernel("linear", "reference", "*", lambda spec: "", reference.linear),
    Kernel("conv2d", "cpu", "cpu", native.refuses, fast.conv2d),
    Kernel("conv2d", "reference", "*", lambda spec: "", reference.conv2d),
    Kernel("embedding", "reference", "*", lambda spec: "", reference.embedding),
    Kernel("any conv2d", "reference", "*", lambda spec: "", reference.conv2d),
)


def pick(op: str, spec: LayerSpec, device: str) -> Kernel:
    """The first row that runs this op for this spec on this device."""
    row: int = _pick(op, spec, device)
    return KERNELS[row]


def why(op: str, spec: LayerSpec, device: str) -> str:
    """Which faster rows this layer does without, and why; empty if there are none."""
    chosen = KERNELS.index(pick(op, spec, device))
    faster = [row for row in KERNELS[:chosen] if row.op == op and row.device == device]
    return "; ".join(f"{row.name}: {row.refuses(spec) or 'not chosen'}" for row in faster)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _pick(op: str, spec: LayerSpec, device: str) -> int:
    """Its place in the table: a number, which a compiler can take as given without a look at why."""
    return _search(op, spec, device, os.environ.get("MINIFLOAT_KERNEL"))


@lru_cache(maxsize=1024)
def _search(op: str, spec: LayerSpec, device: str, forced: str | None) -> int:
    names = {row.name for row in KERNELS}
    if forced and forced not in names:
        raise unknown("kernel", forced, names)
    rows = [row for row in KERNELS if row.op == op and row.device in ("*", device)]
    for row in [row for row in rows if row.name == forced] or rows:
        if not row.refuses(spec):
            return KERNELS.index(row)
    raise UserError(f"kernel {forced!r} cannot run {op} with weights {spec.weight}")
