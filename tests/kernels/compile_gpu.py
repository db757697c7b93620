"""Compiles the GPU kernels for processors that are not there, and prints what came of it as JSON.

    python -m tests.kernels.compile_gpu

A process of its own: in the tests' own process Triton runs as an interpreter.
"""

import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minifloat import formats
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.gpu import activations, attention, product, states
from minifloat.kernels.gpu.recipe import recipe_of
from minifloat.kernels.gpu.tile import tile_of
from minifloat.kernels.states import States
from minifloat.scales import Scale
from minifloat.spec import (
    FP4_G128,
    FP8_TOKEN,
    INT8_TOKEN,
    MXFP6,
    QOQ_G128,
    UINT4_TOKEN,
    LayerSpec,
    QuantSpec,
)
from tests.kernels.problems import problem

M2 = QuantSpec(formats.E2M1, (1, 64), QuantSpec(formats.POW4, (1, -1)))
INT4_ZERO = QuantSpec(formats.UINT4, (1, 128), formats.FP16, zero_point=True)
# (processor, layer, dtype of the activations, tokens)
CASES = {
    "w4a16 one token": (90, LayerSpec(FP4_G128), torch.bfloat16, 1),
    "w4a16 many tokens": (90, LayerSpec(FP4_G128), torch.bfloat16, 512),
    "w4a16 zero points": (80, LayerSpec(INT4_ZERO), torch.float16, 64),
    "w6a16": (80, LayerSpec(MXFP6), torch.bfloat16, 16),
    "w4a8 integers": (80, LayerSpec(FP4_G128, INT8_TOKEN), torch.bfloat16, 256),
    "w4a8 qoq": (80, LayerSpec(QOQ_G128, INT8_TOKEN), torch.bfloat16, 256),
    "w4a8 m2": (90, LayerSpec(M2, FP8_TOKEN), torch.bfloat16, 256),
}
ATTENTION = {
    "kv4": (80, UINT4_TOKEN, torch.float16),
    "kv4 groups": (90, QuantSpec(formats.E2M1, (1, 16), formats.FP16), torch.bfloat16),
}
_ROW, _IMAGES = torch.empty(4096).bfloat16(), torch.empty(2, 4096).bfloat16()
FUSIONS = {
    "activations": (90, FP8_TOKEN, Fusion()),
    "rms": (80, INT8_TOKEN, Fusion("rms", 1e-6, weight=_ROW)),
    "adaln": (90, FP8_TOKEN, Fusion("layer", 1e-6, gain=_IMAGES, shift=_IMAGES)),
    "gelu": (80, INT8_TOKEN, Fusion("gelu")),
}
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
_OPERANDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def _is_whole(value: float) -> bool:
    return isinstance(value, int) and value % 16 == 0


def compiled(kernel: Any, arguments: dict[str, Any], processor: int, **options: int) -> Any:
    """A kernel as it is compiled for a call: as a launch, aligned and divisible where that helps."""
    names = kernel.arg_names
    constants = {
        name: value
        for name, value in arguments.items()
        if name.isupper() or value is None or (type(value) is int and value == 1)
    }
    signature = {}
    for name in names:
        value = arguments[name]
        scalar = "fp32" if isinstance(value, float) else "i32"
        kind = _TYPES[value.dtype] if isinstance(value, Tensor) else scalar
        signature[name] = "constexpr" if name in constants else kind
    whole = [["tt.divisibility", 16]]
    attributes = {
        (names.index(name),): whole
        for name, value in arguments.items()
        if name not in constants and (isinstance(value, Tensor) or _is_whole(value))
    }
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", processor, 32)
    return triton.compile(source, target=target, options=options)


def product_for(processor: int, spec: LayerSpec, dtype: torch.dtype, tokens: int) -> Any:
    recipe = recipe_of(spec, processor >= 89)
    x, layer = problem(spec, 1, 1024, 128)
    x = x[0].expand(tokens, 1024).to(_OPERANDS.get(recipe.operand, dtype))
    x_scale = None if recipe.operand == "float" else torch.ones(tokens)
    tile = tile_of(recipe, tokens, 4096, 4096, 132)
    weight: Scale = layer.scale
    arguments = product.arguments_of(x, x_scale, layer.codes, weight, layer.bias, recipe, tile)
    arguments["y"] = torch.empty(0, dtype=dtype if tile.split == 1 else torch.float32)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiled(product.kernel, arguments, processor, **options)


def attention_for(processor: int, spec: QuantSpec, dtype: torch.dtype) -> Any:
    """Llama-3-8B's heads over 8192 tokens."""
    held = States.of(torch.zeros(1, 8, 64, 128), spec)
    part = attention.Stored(held.codes, held.scale.stored, held.scale.zero, held.spec, held.width)
    query = torch.zeros(1, 32, 1, 128, dtype=dtype)
    arguments = attention.arguments_of(query, part, part, None, 0.1, 16)
    return compiled(attention.kernel, arguments, processor, num_warps=4, num_stages=2)


def summary(found: Any) -> dict[str, Any]:
    ptx = found.asm["ptx"]
    words = ("wgmma", "mma.sync", "e4m3.e4m3", "e4m3x2", "s8.s8")
    return {"bytes": len(found.asm["cubin"])} | {word: ptx.count(word) for word in words}


def main() -> None:
    found = {name: summary(product_for(*case)) for name, case in CASES.items()}
    for name, (processor, spec, done) in FUSIONS.items():
        arguments = activations.arguments_of(torch.empty(8, 4096).bfloat16(), spec, None, done)
        warps = activations.warps_of(4096)
        found[name] = summary(compiled(activations.kernel, arguments, processor, num_warps=warps))
    for name, case in ATTENTION.items():
        found[name] = summary(attention_for(*case))
    arguments = states.arguments_of(_ROW, States.empty(_ROW.view(1, 1, 32, 128), UINT4_TOKEN))
    found["states"] = summary(compiled(states.kernel, arguments, 90, num_warps=1))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
