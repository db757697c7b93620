"""The packed output head alone: perplexity beside the full-precision head's, and time of one token.

    python -m benchmarks.head --model FOLDER [--tokens 2048]

The blocks stay in full precision, so that every difference is the head's and the tied embedding's.
"""

import argparse
import copy
import math
import time
from typing import Any

import torch
from torch import Tensor

from minifloat import formats
from minifloat.layers import weights_held
from minifloat.methods import build
from minifloat.models.load import load_model, read_tokens
from minifloat.models.outside import outside_layers
from minifloat.outside import quantize_outside, specs_outside
from minifloat.plan import Plan
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, LayerSpec, QuantSpec
from minifloat.timing import packed

WINDOW = 512
HEADS = (("int8", "int8"), ("e4m3", "e4m3"), ("e2m1", "int8"))
ROWS, FP16 = (1, -1), formats.FP16
KERNELS = {
    "INT8 rows x INT8": LayerSpec(QuantSpec(formats.INT8, ROWS, FP16), INT8_TOKEN),
    "INT8 g128 x INT8": LayerSpec(QuantSpec(formats.INT8, (1, 128), FP16), INT8_TOKEN),
    "INT8 rows, fp32 inputs": LayerSpec(QuantSpec(formats.INT8, ROWS, FP16)),
    "E4M3 rows x E4M3": LayerSpec(QuantSpec(formats.E4M3, ROWS, FP16), FP8_TOKEN),
    "E2M1 g128 x INT8": LayerSpec(QuantSpec(formats.E2M1, (1, 128), FP16), INT8_TOKEN),
}


@torch.inference_mode()
def likelihoods(model: Any, windows: Tensor) -> Tensor:
    """Log-likelihood of every token but a window's first."""
    found = []
    with weights_held(model):
        for window in windows:
            logs = model(window[None]).logits[0, :-1].log_softmax(-1)
            found.append(logs.gather(1, window[1:, None])[:, 0])
    return torch.cat(found)


def with_head(model: Any, head: str, activation: str) -> Any:
    """A copy whose head is packed as `zeroquant-fp` with these settings does it."""
    other = copy.deepcopy(model)
    rule = Plan(build("zeroquant-fp", {"head": head, "activation": activation}).plan.rules[:1])
    quantize_outside(other, specs_outside(other, rule.resolve((), outside_layers(other))))
    return other


def judge(folder: str, tokens: int) -> None:
    """A line for every head."""
    model, tokenizer = load_model(folder, dtype="float32")
    windows = read_tokens(tokenizer, None, default="heldout", limit=tokens).reshape(-1, WINDOW)
    base = likelihoods(model, windows)
    print(f"| full precision | {math.exp(-base.mean()):.3f} | |")
    for head, activation in HEADS:
        found = likelihoods(with_head(model, head, activation), windows)
        worse = base - found
        error = float(worse.std()) / len(worse) ** 0.5
        perplexity = math.exp(-found.mean())
        above = f"{worse.mean():.4f} ± {error:.4f}"
        print(f"| {head} x {activation} | {perplexity:.3f} | {above} |", flush=True)


@torch.inference_mode()
def clock() -> None:
    """Milliseconds of one token by kernel, best of 60."""
    x, w = torch.randn(1, 1, 576), torch.randn(49152, 576) * 0.02
    layers: dict[str, Any] = {name: packed(w, spec) for name, spec in KERNELS.items()}
    layers["fp32"] = lambda x: torch.nn.functional.linear(x, w)
    for name, layer in layers.items():
        best = math.inf
        for _ in range(60):
            before = time.perf_counter()
            layer(x)
            best = min(best, time.perf_counter() - before)
        print(f"| {name} | {1e3 * best:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a language model")
    parser.add_argument("--tokens", type=int, default=2048, help="a multiple of 512")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock()
    judge(args.model, args.tokens)


if __name__ == "__main__":
    main()
