"""What a KV cache in few bits does to the time of a token on the CPU.

    python -m benchmarks.kv_decode --model FOLDER [--lengths 256 1024 4096] [--compiled]
    python -m benchmarks.kv_decode --attention [--lengths 256 1024 4096]

The model is packed to FP4 in groups of 128 with INT8 activations and an INT8 head; weights are rounded
to nearest, since time does not depend on how. Each contestant reads the same prompt once; then all take
turns, a token each, and CPU time of the thread is counted. `--attention` times attention alone, layer
after layer (so that caches hold what they do in a model), against the bytes that it must read.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, StaticCache

from benchmarks.common import finish
from benchmarks.end_to_end import COMPILED, LANGUAGE, NEAREST
from minifloat import QuantizedCache
from minifloat.kernels import fast
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.load import load_model
from minifloat.spec import SPECS, CacheSpec

CACHES = ("int8-token", "fp8-token", "uint4-token", "mxfp4")
IN_A_MODEL, IN_A_STEP = ("int8-token", "uint4-token", "mxfp4"), ("int8-token", "uint4-token")
LAYERS, HEADS, SHARED, WIDTH = 30, 3, 3, 64  # of SmolLM2-135M


def contestants(model: Any, length: int, turns: int, compiled: bool) -> dict[str, tuple[Any, ...]]:
    """Of each: its implementation of attention, its cache, and the step that it takes."""
    room = length + turns + 8
    found: dict[str, tuple[Any, ...]] = {"fp32": ("sdpa", DynamicCache(config=model.config), model)}
    for name in IN_A_MODEL:
        found[f"{name}, decoded"] = ("sdpa", QuantizedCache(model.config, name), model)
        found[name] = ("minifloat", QuantizedCache(model.config, name), model)
    if compiled:
        step = torch.compile(model, fullgraph=True)
        found["fp32, compiled"] = ("sdpa", StaticCache(model.config, room), step)
        for name in IN_A_STEP:
            cache = QuantizedCache(model.config, name, capacity=room)
            found[f"{name}, compiled"] = ("minifloat", cache, step)
    return found


def decoding(model: Any, length: int, turns: int, compiled: bool) -> list[dict[str, Any]]:
    prompt = torch.arange(length)[None, :] % 20000 + 100
    found = contestants(model, length, turns, compiled)
    times: dict[str, list[float]] = {name: [] for name in found}
    with torch.inference_mode():
        for implementation, cache, _ in found.values():
            model.set_attn_implementation(implementation)
            model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        for _ in range(turns):
            for name, (implementation, cache, step) in found.items():
                model.set_attn_implementation(implementation)
                started = time.thread_time()
                step(prompt[:, -1:], past_key_values=cache, use_cache=True)
                times[name].append(1e3 * (time.thread_time() - started))
    return [{"tokens": length, "cache": name, "ms": t[2:]} for name, t in times.items()]


def attention_alone(length: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of a layer, in several passes over all of them."""
    q = torch.randn(1, HEADS * SHARED, 1, WIDTH)
    wide = [torch.randn(2, 1, HEADS, length, WIDTH) for _ in range(LAYERS)]

    def in_full(kept: list[Tensor]) -> None:
        for k, v in kept:
            scaled_dot_product_attention(q, k, v, enable_gqa=True)

    def in_few_bits(kept: list[Any]) -> None:
        for k, v in kept:
            fast.attention_kv(q, k, v, None, WIDTH**-0.5)

    turns: dict[str, tuple[Callable[[list[Any]], None], list[Any], int]] = {
        "fp32": (in_full, [tuple(kv) for kv in wide], wide[0].nbytes)
    }
    for name in CACHES:
        spec = CacheSpec(SPECS[name], SPECS[name]).keys
        packed = [tuple(fast.states(x, spec) for x in kv) for kv in wide]
        turns[name] = (in_few_bits, packed, sum(s.nbytes for s in packed[0]))
    rows: list[dict[str, Any]] = [
        {"tokens": length, "cache": name, "bytes": size, "us": []}
        for name, (_, _, size) in turns.items()
    ]
    for _ in range(rounds):
        for row, (run, kept, _) in zip(rows, turns.values(), strict=True):
            started = time.thread_time()
            run(kept)
            row["us"].append(1e6 * (time.thread_time() - started) / LAYERS)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Least and median; attention's bytes a second are those of the least."""
    unit = "us" if "us" in rows[0] else "ms"
    more = ["KB a layer", "GB/s"] if unit == "us" else []
    head = ["tokens", "cache", f"{unit}, least", f"{unit}, median", *more]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        times = sorted(row[unit])
        cells = [
            str(row["tokens"]),
            row["cache"],
            f"{times[0]:.1f}",
            f"{times[len(times) // 2]:.1f}",
        ]
        if more:
            cells += [f"{row['bytes'] / 1e3:.0f}", f"{row['bytes'] / times[0] / 1e3:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of a language model")
    parser.add_argument("--attention", action="store_true", help="attention alone")
    parser.add_argument("--lengths", nargs="+", type=int, default=[256, 1024, 4096])
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--compiled", action="store_true", help="compiled steps take part too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if (args.model is None) != args.attention:
        parser.error("give --model or --attention")
    rows = []
    if args.model:
        model, _ = load_model(args.model, dtype="float32")
        plan = build("zeroquant-fp", NEAREST | LANGUAGE[COMPILED])
        quantize(model, plan, [torch.arange(16).unsqueeze(0)])
    for length in args.lengths:
        if args.model:
            rows += decoding(model, length, args.turns, args.compiled)
        else:
            rows += attention_alone(length, args.turns)
    print(f"load {os.getloadavg()[0]:.1f}")
    finish(rows, table(rows), ["torch", "transformers"], args.json)


if __name__ == "__main__":
    main()
