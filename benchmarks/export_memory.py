"""Peak memory and time of an export of an 8B-shaped model, on random codes written layer by layer.

    python -m benchmarks.export_memory DIR [--to compressed-tensors] [--layers 32]

The shapes are those of Llama-3-8B (width 4096, feed-forward 14336, 8 key-value heads, 128256 tokens,
untied), with INT4 in groups of 128 under bfloat16 scales. The checkpoint takes 6 GB, the export as much.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minifloat import formats
from minifloat.export.native import configuration
from minifloat.export.stored import Stored
from minifloat.export.write import export
from minifloat.plan import Plan
from minifloat.shards import write
from minifloat.spec import LayerSpec, QuantSpec

WIDTH, FEED, KEYS, TOKENS = 4096, 14336, 1024, 128256
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (FEED, WIDTH),
    "mlp.up_proj": (FEED, WIDTH),
    "mlp.down_proj": (WIDTH, FEED),
}
SPEC = LayerSpec(QuantSpec(formats.INT4, (1, 128), formats.BF16))


def tensors(layers: int) -> Iterator[tuple[str, Tensor]]:
    """A checkpoint's tensors, made one after the other."""
    for name in ("lm_head", "model.embed_tokens"):
        yield f"{name}.weight", torch.zeros(TOKENS, WIDTH, dtype=torch.bfloat16)
    for i in range(layers):
        for name, (rows, columns) in SHAPES.items():
            prefix = f"model.layers.{i}.{name}"
            yield f"{prefix}.weight", torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
            yield f"{prefix}.weight_scale", torch.rand(rows, columns // 128, dtype=torch.bfloat16)


def checkpoint(folder: Path, layers: int) -> None:
    """A folder of ours with random codes."""
    folder.mkdir(parents=True)
    write(folder, tensors(layers))
    names = [f"model.layers.{i}.{name}" for i in range(layers) for name in SHAPES]
    stored = {name: Stored(0, SHAPES[name.split(".", 3)[3]]) for name in names}
    quantization = configuration(Plan((("*", SPEC),)), stored)
    config = {"dtype": "bfloat16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--to", default="compressed-tensors")
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    source = arguments.folder / "native"
    if not source.exists():
        checkpoint(source, arguments.layers)
        print("checkpoint written; run again to measure the export alone")
        return
    started = time.perf_counter()
    done = export(source, arguments.to, arguments.folder / arguments.to)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - started
    print(
        f"{done['layers']} layers, {done['after'] / 1e9:.2f} GB in {seconds:.0f} s, "
        f"peak memory {peak / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
