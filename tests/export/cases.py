"""Specs that each contract can hold, by the names that their readers give them."""

from dataclasses import replace

import torch

from minifloat import formats
from minifloat.export.contract import Layer
from minifloat.qtensor import encode, scale_of
from minifloat.scales import Scale
from minifloat.spec import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    FP8_TOKEN,
    INT8_CHANNEL,
    INT8_TOKEN,
    MXFP4,
    MXFP6,
    MXFP6_E3M2,
    MXFP8,
    NVFP4,
    LayerSpec,
    QuantSpec,
)

INT4 = QuantSpec(formats.INT4, (1, 32), formats.FP16)
UINT4 = QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True)
NVFP4_INPUT = replace(NVFP4, dynamic=True)
NVFP4_PLAIN_INPUT = replace(NVFP4_INPUT, scale=formats.E4M3)
GROUP_TOKEN = QuantSpec(formats.E4M3, (1, 128), dynamic=True)
UINT8_INPUT = QuantSpec(formats.UINT8, (-1, -1), zero_point=True)
BY_CONTRACT: dict[str, dict[str, LayerSpec]] = {
    "compressed-tensors": {
        "FP8 tensor": LayerSpec(FP8_TENSOR, replace(FP8_TENSOR, dynamic=True)),
        "FP8": LayerSpec(FP8_TENSOR, FP8_TENSOR),
        "FP8 channel static": LayerSpec(FP8_CHANNEL, FP8_TENSOR),
        "FP8_DYNAMIC": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
        "FP8 weights": LayerSpec(FP8_CHANNEL),
        "FP8_BLOCK": LayerSpec(FP8_BLOCK, GROUP_TOKEN),
        "W8A8": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
        "W8A8 static": LayerSpec(INT8_CHANNEL, QuantSpec(formats.INT8, (-1, -1))),
        "W8A8 static asymmetric": LayerSpec(INT8_CHANNEL, UINT8_INPUT),
        "W4A16": LayerSpec(INT4),
        "W4A16_ASYM": LayerSpec(UINT4),
        "W4A16 channel": LayerSpec(QuantSpec(formats.INT4, (1, -1))),
        "W3A16": LayerSpec(QuantSpec(formats.INT3, (1, 32))),
        "W8A16": LayerSpec(QuantSpec(formats.INT8, (1, 32), formats.BF16)),
        "W4A8": LayerSpec(INT4, INT8_TOKEN),
        "W4AFP8": LayerSpec(QuantSpec(formats.INT4, (1, 128)), FP8_TOKEN),
        "NVFP4A16": LayerSpec(NVFP4),
        "NVFP4": LayerSpec(NVFP4, NVFP4_INPUT),
        "MXFP4A16": LayerSpec(MXFP4),
        "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
        "MXFP4XFP8": LayerSpec(MXFP4, GROUP_TOKEN),
        "MXFP6A16": LayerSpec(MXFP6),
        "MXFP8": LayerSpec(MXFP8, replace(MXFP8, dynamic=True)),
    },
    "modelopt": {
        "NVFP4": LayerSpec(NVFP4, NVFP4_INPUT),
        "W4A16_NVFP4": LayerSpec(NVFP4),
        "MXFP8": LayerSpec(MXFP8, replace(MXFP8, dynamic=True)),
        "FP8": LayerSpec(FP8_TENSOR, FP8_TENSOR),
        "FP8_PER_CHANNEL_PER_TOKEN": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
    },
    "quark": {
        "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
        "MXFP4 weights": LayerSpec(MXFP4),
        "MXFP6 E2M3": LayerSpec(MXFP6, replace(MXFP6, dynamic=True)),
        "MXFP6 E3M2": LayerSpec(MXFP6_E3M2, replace(MXFP8, dynamic=True)),
    },
    "fp8": {"block": LayerSpec(FP8_BLOCK, GROUP_TOKEN)},
    "humming": {
        **{
            f"float e{e}m{m}": LayerSpec(
                QuantSpec(formats.floating(e, m), (1, 32), formats.E8M0, "up")
            )
            for e in range(1, 6)
            for m in range(8 - e)
            if e + m > 1
        },
        **{
            f"int{bits}": LayerSpec(QuantSpec(formats.integer(bits), (1, 64), formats.FP16))
            for bits in range(2, 9)
        },
        "NVFP4": LayerSpec(NVFP4),
        "channel": LayerSpec(QuantSpec(formats.E3M2, (1, -1))),
        "tensor": LayerSpec(QuantSpec(formats.E3M4, (-1, -1))),
        "block": LayerSpec(FP8_BLOCK),
        "e5m2 scales": LayerSpec(QuantSpec(formats.E2M3, (1, 32), formats.E5M2)),
    },
    "sdnq": {
        **{
            f"float e{e}m{m}": LayerSpec(
                QuantSpec(formats.floating(e, m), (1, 32), formats.E8M0, "up")
            )
            for e in range(1, 6)
            for m in range(8 - e)
            if e + m > 1
        },
        **{
            f"int{bits}": LayerSpec(QuantSpec(formats.integer(bits), (1, 64), formats.FP16))
            for bits in range(2, 9)
        },
        **{
            f"uint{bits}": LayerSpec(
                QuantSpec(
                    formats.integer(bits, signed=False), (1, 64), formats.FP16, zero_point=True
                )
            )
            for bits in (2, 5, 8)
        },
        "NVFP4": LayerSpec(NVFP4),
        "channel": LayerSpec(QuantSpec(formats.E3M2, (1, -1))),
        "tensor": LayerSpec(QuantSpec(formats.E3M4, (-1, -1))),
    },
    "torchao": {
        "float8 row": LayerSpec(FP8_CHANNEL),
        "float8 tensor": LayerSpec(FP8_TENSOR),
        "float8 block": LayerSpec(QuantSpec(formats.E4M3, (64, 64))),
        "float8 e5m2": LayerSpec(QuantSpec(formats.E5M2, (1, -1))),
        "float8 dynamic": LayerSpec(FP8_CHANNEL, FP8_TOKEN),
        "float8 tensor dynamic": LayerSpec(FP8_TENSOR, replace(FP8_TENSOR, dynamic=True)),
        "int8 row": LayerSpec(INT8_CHANNEL),
        "int8 group": LayerSpec(QuantSpec(formats.INT8, (1, 64))),
        "int8 dynamic": LayerSpec(INT8_CHANNEL, INT8_TOKEN),
        **{
            f"intx {bits}": LayerSpec(QuantSpec(formats.integer(bits), (1, 64)))
            for bits in range(2, 8)
        },
        **{
            f"uintx {bits}": LayerSpec(
                QuantSpec(
                    formats.integer(bits, signed=False), (1, 64), formats.FP16, zero_point=True
                )
            )
            for bits in (4, 8)
        },
        "NVFP4": LayerSpec(NVFP4),
        "MXFP4": LayerSpec(MXFP4, replace(MXFP4, dynamic=True)),
        "MXFP8": LayerSpec(MXFP8, replace(MXFP8, dynamic=True)),
    },
}
CASES = [(name, case) for name, cases in BY_CONTRACT.items() for case in cases]


def layer_of(spec: LayerSpec, shape: tuple[int, int] = (256, 384)) -> Layer:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    assert spec.weight is not None
    given = None
    if spec.input is not None and spec.calibrated is not None:
        given = scale_of(torch.randn(64, shape[1], generator=generator) + 1, spec.input)
        given = Scale(given.outer) if given.outer is not None else given
    return Layer(spec, encode(w, spec.weight), given)
