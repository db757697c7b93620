"""Nanoseconds a value for encode, decode and fake-quantize, against every peer and the memory limit.

    python -m benchmarks.codec [--size 4096] [--json FILE]

Element formats without scales against ml_dtypes, gfloat, torch's casts and torchao's float-x utilities;
presets with scales against torchao's MX, NVFP4, float8 and affine primitives. All in one process, best
of several runs (other work on the machine only ever adds time). Every call gives a new tensor, as users
call it; `limit` is the copy of the operand into a new tensor of the result's type, which no routine can
beat by much (though it pays for page faults that numpy's huge pages, which we use too, do without).
Values must be equal before they are timed. The data never overflows: torch's and ml_dtypes' casts do not
saturate and look for no NaN, ours does both in the same time. `-`: the library has no such format.

Needs the peers (`pip install ml_dtypes==0.6.0 gfloat==0.5.2 torchao==0.18.0`); none is a dependency.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import torch
from gfloat import formats as gfloat_formats
from torchao.prototype.custom_fp_utils import _f32_to_floatx_unpacked, _floatx_unpacked_to_f32
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor
from torchao.quantization import quant_primitives as affine

from benchmarks.common import finish
from minifloat import rounding
from minifloat.formats import Format
from minifloat.qtensor import decode, encode, fake_quantize
from minifloat.spec import SPECS

Calls = dict[str, Callable[[], Any]]

FORMATS = ["e2m1", "e1m2", "e3m0", "e2m3", "e3m2", "e2m5", "e3m4", "e4m3", "e5m2"]
FORMATS += ["int4", "int8", "e8m0", "nf4"]
ML_DTYPES = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "int4": ml_dtypes.int4,
    "int8": np.int8,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
TORCH = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e8m0": torch.float8_e8m0fnu,
    "int8": torch.int8,
}
GFLOAT = {
    "e2m1": gfloat_formats.format_info_ocp_e2m1,
    "e2m3": gfloat_formats.format_info_ocp_e2m3,
    "e3m2": gfloat_formats.format_info_ocp_e3m2,
    "e4m3": gfloat_formats.format_info_ocp_e4m3,
    "e5m2": gfloat_formats.format_info_ocp_e5m2,
    "e8m0": gfloat_formats.format_info_ocp_e8m0,
}
FLOATX = {"e2m1": (2, 1), "e2m3": (2, 3), "e3m2": (3, 2)}
MX = {
    "mxfp4": torch.float4_e2m1fn_x2,
    "mxfp6": "fp6_e2m3",
    "mxfp6-e3m2": "fp6_e3m2",
    "mxfp8": torch.float8_e4m3fn,
}


def element_calls(name: str, x: torch.Tensor) -> dict[str, Calls]:
    """What each library does for a format without scales: {operation: {library: call}}."""
    fmt = Format.parse(name)
    codes = rounding.encode(x, fmt)
    calls: dict[str, Calls] = {
        "encode": {"minifloat": lambda: rounding.encode(x, fmt)},
        "decode": {"minifloat": lambda: rounding.decode(codes, fmt)},
        "round": {"minifloat": lambda: rounding.round_to(x, fmt)},
    }
    array = x.numpy()
    if name in ML_DTYPES:
        dtype = ML_DTYPES[name]

        def cast_array() -> Any:  # integer casts truncate, so numpy rounds before
            return (np.rint(array) if fmt.is_integer else array).astype(dtype)

        stored = cast_array()
        calls["encode"]["ml_dtypes"] = cast_array
        calls["decode"]["ml_dtypes"] = lambda: stored.astype(np.float32)
        calls["round"]["ml_dtypes"] = lambda: cast_array().astype(np.float32)
    if name in TORCH:
        cast = TORCH[name]

        def cast_tensor() -> torch.Tensor:
            return (x.round() if fmt.is_integer else x).to(cast)

        kept = cast_tensor()
        calls["encode"]["torch"] = cast_tensor
        calls["decode"]["torch"] = kept.float
        calls["round"]["torch"] = lambda: cast_tensor().float()
    if name in GFLOAT:
        info = GFLOAT[name]
        part = array[: max(1, len(array) // 16)]  # slow: a sixteenth, counted 16 times
        rounded = gfloat.round_ndarray(info, part, sat=True)
        bits = gfloat.encode_ndarray(info, rounded)
        calls["encode"]["gfloat/16"] = lambda: gfloat.encode_ndarray(
            info, gfloat.round_ndarray(info, part, sat=True)
        )
        calls["decode"]["gfloat/16"] = lambda: gfloat.decode_ndarray(info, bits)
        calls["round"]["gfloat/16"] = lambda: gfloat.round_ndarray(info, part, sat=True)
    if name in FLOATX:
        layout = FLOATX[name]
        unpacked = _f32_to_floatx_unpacked(x, *layout)
        calls["encode"]["torchao"] = lambda: _f32_to_floatx_unpacked(x, *layout)
        calls["decode"]["torchao"] = lambda: _floatx_unpacked_to_f32(unpacked, *layout)
        calls["round"]["torchao"] = lambda: _floatx_unpacked_to_f32(
            _f32_to_floatx_unpacked(x, *layout), *layout
        )
    return calls


def preset_calls(name: str, x: torch.Tensor) -> dict[str, Calls]:
    """The same for a preset, scales included."""
    spec = SPECS[name]
    q = encode(x, spec)
    calls: dict[str, Calls] = {
        "encode": {"minifloat": lambda: encode(x, spec)},
        "decode": {"minifloat": lambda: decode(q)},
        "fake-quantize": {"minifloat": lambda: fake_quantize(x, spec)},
    }
    to_peer, from_peer = torchao_preset(name, x)
    if to_peer is not None and from_peer is not None:
        stored = to_peer()
        calls["encode"]["torchao"] = to_peer
        calls["decode"]["torchao"] = lambda: from_peer(stored)
        calls["fake-quantize"]["torchao"] = lambda: from_peer(to_peer())
    return calls


def torchao_preset(
    name: str, x: torch.Tensor
) -> tuple[Callable[[], Any] | None, Callable[[Any], torch.Tensor] | None]:
    """torchao's way to a preset and back."""
    if name in MX:
        return lambda: MXTensor.to_mx(x, MX[name], 32), lambda t: t.dequantize(torch.float32)
    if name == "nvfp4":
        # It takes the outer scale as given: amax / (448 * 6), as its own workflows compute it.
        def to_nvfp4() -> NVFP4Tensor:
            return NVFP4Tensor.to_nvfp4(x, per_tensor_scale=x.abs().max() / (448.0 * 6.0))

        return to_nvfp4, lambda t: t.dequantize(torch.float32)
    columns = x.shape[1]
    blocks = {
        "fp8-tensor": tuple(x.shape),
        "fp8-channel": (1, columns),
        "fp8-token": (1, columns),
        "fp8-block": (128, 128),
        "int8-channel": (1, columns),
        "int8-token": (1, columns),
        "int4-g128": (1, 128),
    }
    if name not in blocks:
        return None, None
    block = blocks[name]
    if name.startswith("fp8"):

        def to_float8() -> tuple[torch.Tensor, torch.Tensor]:
            scale = affine._choose_scale_float8(x, list(block), float8_dtype=torch.float8_e4m3fn)
            return affine._quantize_affine_float8(x, scale, torch.float8_e4m3fn), scale

        return to_float8, lambda t: affine._dequantize_affine_float8(*t)
    low, high = (-8, 7) if name.startswith("int4") else (-128, 127)

    def to_integer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scale, zero = affine.choose_qparams_affine(
            x, affine.MappingType.SYMMETRIC, block, torch.int8, low, high
        )
        codes = affine.quantize_affine(x, block, scale, zero, torch.int8, low, high)
        return codes, scale, zero

    def from_integer(t: tuple[torch.Tensor, ...]) -> torch.Tensor:
        codes, scale, zero = t
        return affine.dequantize_affine(codes, block, scale, zero, torch.int8, low, high)

    return to_integer, from_integer


def nanoseconds(call: Callable[[], Any], values: int) -> float:
    """Best of at least three runs and of as many as fit a second and a half."""
    best, started = float("inf"), time.perf_counter()
    call()
    for run in range(40):
        before = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - before)
        if run >= 2 and now - started > 1.5:
            break
    return best / values * 1e9


def check_equal(name: str, calls: Calls) -> None:
    """Every library must give our values: a fast wrong answer is no peer."""
    ours = calls["minifloat"]()
    for library, call in calls.items():
        theirs = torch.as_tensor(np.asarray(call(), dtype=np.float32))
        same = theirs == ours[: len(theirs)]
        assert bool(same.all()), f"{library} disagrees on {name} at {int((~same).sum())} values"


def limits(x: torch.Tensor) -> dict[str, float]:
    """Copies into new tensors: no routine that reads and writes as much can be faster."""
    codes = x.to(torch.uint8)
    return {
        "encode": nanoseconds(lambda: x.to(torch.uint8), x.numel()),
        "decode": nanoseconds(codes.float, x.numel()),
        "round": nanoseconds(x.clone, x.numel()),
        "fake-quantize": nanoseconds(x.clone, x.numel()),
    }


def measure(x: torch.Tensor) -> list[dict[str, Any]]:
    """One row for every format or preset and operation."""
    rows = []
    limit = limits(x)
    for name in [*FORMATS, *SPECS]:
        values = x.abs() if name == "e8m0" else x
        made = element_calls(name, values) if name in FORMATS else preset_calls(name, values)
        for operation, calls in made.items():
            if operation == "round":
                check_equal(name, calls)
            row: dict[str, Any] = {"name": name, "operation": operation}
            for library, call in calls.items():
                share = 16 if library.endswith("/16") else 1
                spent = nanoseconds(call, values.numel() // share)
                row[library.removesuffix("/16")] = spent
            row["limit"] = limit[operation]
            rows.append(row)
            print(row, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in Markdown, with how many times faster we are than the fastest peer."""
    libraries = ("minifloat", "ml_dtypes", "gfloat", "torch", "torchao", "limit")
    lines = [
        "| format | operation | " + " | ".join(libraries) + " | best peer / minifloat |",
        "|---" * (3 + len(libraries)) + "|",
    ]
    for row in rows:
        peers = [row[name] for name in libraries[1:-1] if name in row]
        cells = [f"{row[name]:.2f}" if name in row else "-" for name in libraries]
        ratio = f"{min(peers) / row['minifloat']:.2f}" if peers else "-"
        lines.append(f"| {row['name']} | {row['operation']} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.size, args.size, generator=generator)
    rows = measure(x)
    finish(rows, table(rows), ("torch", "ml_dtypes", "gfloat", "torchao", "numpy"), args.json)


if __name__ == "__main__":
    main()
