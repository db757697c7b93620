"""Milliseconds of a decoding step through the blocks of an 8B-shaped Llama, as QServe runs them.

Part of `benchmarks.kernels_gpu`. A block: RMSNorm to FP8 or INT8 | q, k, v | new keys and values to the
cache | attention over the cache | its output to 8 bits | o | RMSNorm to 8 bits | gate and up | SiLU-mul
to 8 bits | down. The peer is the same in bf16. Rotary embeddings, the head and sampling are left out
of both. The blocks' weights exceed every cache; one CUDA graph holds a whole step. Before it is timed,
the output of one block is compared with that of the reference kernels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu_time import microseconds
from minifloat import formats
from minifloat.kernels import fast, reference
from minifloat.kernels.fusion import Fusion
from minifloat.kernels.fusion import quantize_activation as twin
from minifloat.kernels.gpu.linear import multiplied
from minifloat.kernels.states import States
from minifloat.layers import QLinear
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, QOQ_G128, UINT4_TOKEN, LayerSpec, QuantSpec
from minifloat.timing import packed

M2 = QuantSpec(formats.E2M1, (1, 128), QuantSpec(formats.POW4, (1, -1)))
OURS = {
    "fp4 m2 x fp8, kv4": LayerSpec(M2, FP8_TOKEN),
    "qoq: int4 x int8, kv4": LayerSpec(QOQ_G128, INT8_TOKEN),
}
BLOCKS = 32
SIZES = ((1, 1024), (16, 1024), (64, 1024))
EPS = 1e-6


class Shape(NamedTuple):
    hidden: int
    heads: int
    shared: int
    width: int
    up: int


LLAMA = Shape(4096, 32, 8, 128, 14336)


def weights(shape: Shape) -> dict[str, Tensor]:
    """One block's, in bf16."""
    hidden, heads, shared, width, up = shape
    sizes = {
        "qkv": ((heads + 2 * shared) * width, hidden),
        "o": (hidden, heads * width),
        "gate_up": (2 * up, hidden),
        "down": (hidden, up),
    }
    device: Any = {"device": "cuda", "dtype": torch.bfloat16}
    found = {name: torch.randn(size, **device) * size[1] ** -0.5 for name, size in sizes.items()}
    return found | {"norm1": torch.rand(hidden, **device), "norm2": torch.rand(hidden, **device)}


class Block:
    """A block of packed layers over its own cache; `plain` takes the reference kernels throughout."""

    def __init__(self, w: dict[str, Tensor], spec: LayerSpec, shape: Shape, past: Tensor) -> None:
        assert spec.input is not None
        self.shape, self.spec, self.input = shape, spec, spec.input
        self.norm1, self.norm2 = w["norm1"], w["norm2"]
        names = ("qkv", "o", "gate_up", "down")
        self.layers = {n: packed(w[n].float(), spec).to(w[n].device) for n in names}
        self.keys, self.values = (States.of(part, UINT4_TOKEN) for part in past)

    def __call__(self, x: Tensor, *, plain: bool = False) -> Tensor:
        shape, rows = self.shape, reference if plain else fast
        quantize = twin if plain else fast.quantize_activation
        encode = States.of if plain else fast.states

        def layer(name: str, y: Tensor, fusion: Fusion | None = None) -> Tensor:
            return _product(self.layers[name], *quantize(y, self.input, None, fusion), x.dtype)

        y = layer("qkv", x, Fusion("rms", EPS, self.norm1)).unflatten(1, (-1, 1, shape.width))
        q, k, v = y.split([shape.heads, shape.shared, shape.shared], 1)
        for held, new in ((self.keys, k), (self.values, v)):
            for room, part in zip(held.tensors(), encode(new, UINT4_TOKEN).tensors(), strict=True):
                room[:, :, -1:] = part
        y = rows.attention_kv(q, self.keys, self.values, None, shape.width**-0.5)
        x = x + layer("o", y.flatten(1))
        gate, up = layer("gate_up", x, Fusion("rms", EPS, self.norm2)).chunk(2, 1)
        return x + layer("down", gate.contiguous(), Fusion("silu_mul", other=up.contiguous()))


def _product(layer: QLinear, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    p = layer.packed()
    return multiplied(codes, scale, p.codes, p.scale, p.bias, p.spec, dtype)


def peer(w: dict[str, Tensor], shape: Shape, past: Tensor) -> Any:
    """The same in bf16."""
    keys, values = past.bfloat16()

    def call(x: Tensor) -> Tensor:
        y = functional.rms_norm(x, x.shape[1:], w["norm1"], EPS) @ w["qkv"].T
        parts = [shape.heads, shape.shared, shape.shared]
        q, k, v = y.unflatten(1, (-1, 1, shape.width)).split(parts, 1)
        keys[:, :, -1:], values[:, :, -1:] = k, v
        y = functional.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        x = x + y.flatten(1) @ w["o"].T
        gate, up = (functional.rms_norm(x, x.shape[1:], w["norm2"], EPS) @ w["gate_up"].T).chunk(
            2, 1
        )
        return x + (functional.silu(gate) * up) @ w["down"].T

    return call


def measure(speed: float) -> list[dict[str, Any]]:
    """One row for every number of sequences; `speed`, in bytes a microsecond, is not asked for."""
    rows = []
    for batch, tokens in SIZES:
        x = torch.randn(batch, LLAMA.hidden, device="cuda", dtype=torch.bfloat16)
        past = torch.randn(2, batch, LLAMA.shared, tokens, LLAMA.width, device="cuda")
        row: dict[str, Any] = {"batch": batch, "tokens": tokens, "ms": {}}
        blocks: list[Any] = [peer(weights(LLAMA), LLAMA, past) for _ in range(BLOCKS)]
        row["ms"]["bf16"] = microseconds(blocks, x) * BLOCKS / 1e3
        for name, spec in OURS.items():
            blocks = [Block(weights(LLAMA), spec, LLAMA, past) for _ in range(BLOCKS)]
            check(blocks[0], x)
            row["ms"][name] = microseconds(blocks, x) * BLOCKS / 1e3
        rows.append(row)
        print(row, flush=True)
    return rows


def check(block: Block, x: Tensor) -> None:
    """Within what rounding the other way of a few activations does."""
    found, expected = block(x).float(), block(x, plain=True).float()
    error = float((found - expected).norm() / expected.norm())
    if not error < 0.03:
        raise SystemExit(
            f"a block of {block.spec.weight} differs from the reference by {error:.3f}"
        )


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds a step, and how many times faster than bf16."""
    lines = [
        "| sequences | tokens | bf16 | " + " | ".join(OURS) + " |",
        "|---" * (3 + len(OURS)) + "|",
    ]
    for row in rows:
        ms = row["ms"]
        cells = [f"{ms[name]:.2f} ({ms['bf16'] / ms[name]:.2f}x)" for name in OURS]
        first = f"| {row['batch']} | {row['tokens']} | {ms['bf16']:.2f} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)
