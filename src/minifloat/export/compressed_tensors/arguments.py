"""What compressed-tensors calls our formats and specs, and the way back from its arguments to a spec."""

from dataclasses import replace
from typing import Any

import torch

from minifloat import formats
from minifloat.export.contract import Refusal, Shape
from minifloat.formats import E2M1, E2M3, E4M3, E8M0, Format
from minifloat.spec import NVFP4, QuantSpec

FLOATS = {E2M1: 4, E2M3: 6, E4M3: 8}
MX = {
    E2M1: "mxfp4-pack-quantized",
    E2M3: "mxfp6-pack-quantized",
    E4M3: "mxfp8-quantized",
}
# Inputs with block scales of the run: under one calibrated scale, or under none, which is written as 1.
NVFP4_INPUT = replace(NVFP4, dynamic=True)
NVFP4_PLAIN_INPUT = replace(NVFP4_INPUT, scale=E4M3)


def weight_spec(args: dict[str, Any], dtype: torch.dtype) -> QuantSpec:
    """A weight's spec from its arguments and the dtype of its scales."""
    if args["strategy"] == "tensor_group":
        return NVFP4
    fmt = _element(args)
    if dtype == torch.uint8:
        return QuantSpec(fmt, (1, 32), E8M0, "ocp")
    names = {torch.float32: formats.FP32, torch.float16: formats.FP16, torch.bfloat16: formats.BF16}
    return QuantSpec(fmt, _tile(args), names[dtype], zero_point=not args["symmetric"])


def input_spec(args: dict[str, Any], static: bool) -> QuantSpec:
    if static and args["strategy"] != "tensor":
        raise Refusal(f"its input has calibrated scales by {args['strategy']}, not one a tensor")
    if args["strategy"] == "tensor_group":
        return NVFP4_INPUT
    fmt = _element(args)
    if args.get("scale_dtype") == "torch.uint8":
        return QuantSpec(fmt, (1, 32), E8M0, "ocp", dynamic=True)
    return QuantSpec(fmt, _tile(args), zero_point=not args["symmetric"], dynamic=not static)


def _element(args: dict[str, Any]) -> Format:
    bits = args["num_bits"]
    if args["type"] == "float":
        return {width: fmt for fmt, width in FLOATS.items()}[bits]
    return formats.integer(bits, signed=bool(args["symmetric"]))


def _tile(args: dict[str, Any]) -> Shape:
    if args["strategy"] == "block":
        rows, columns = args["block_structure"]
        return rows, columns
    tiles = {"tensor": (-1, -1), "channel": (1, -1), "token": (1, -1)}
    return tiles.get(args["strategy"]) or (1, args["group_size"])
