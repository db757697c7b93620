"""What a KV cache in few bits costs a language model, and how many bytes it takes.

    python -m benchmarks.kv_cache --model PATH [--evaluate 4096] [--smooth 0.5]

Held-out text in windows; attention sees what the cache keeps, so that a forward pass over a window has
the perplexity of generation. KL divergence and top-1 agreement are with the model in full precision and
its usual cache. `benchmarks.kv_decode` times generation.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.common import finish
from benchmarks.zeroquant_fp import Remembered
from minifloat import QuantizedCache, formats
from minifloat.evaluate.compare import compare
from minifloat.models.llama import LlamaAdapter
from minifloat.models.load import load_model, read_tokens
from minifloat.models.seam import fold_scale
from minifloat.spec import FP8_TOKEN, INT8_TOKEN, MXFP4, UINT4_TOKEN, CacheSpec, QuantSpec

FP4_G16 = QuantSpec(formats.E2M1, (1, 16), formats.FP16)
INT4_TOKEN = QuantSpec(formats.INT4, (1, -1), formats.FP16)
CACHES = {
    "KV8 INT8": CacheSpec(INT8_TOKEN, INT8_TOKEN),
    "KV8 E4M3": CacheSpec(FP8_TOKEN, FP8_TOKEN),
    "K8 V4": CacheSpec(INT8_TOKEN, UINT4_TOKEN),
    "KV4 UINT4 with zero points (QoQ)": CacheSpec(UINT4_TOKEN, UINT4_TOKEN),
    "KV4 E2M1 in groups of 16": CacheSpec(FP4_G16, FP4_G16),
    "KV4 MXFP4": CacheSpec(MXFP4, MXFP4),
    "KV4 INT4 without zero points": CacheSpec(INT4_TOKEN, INT4_TOKEN),
}


class Cached(nn.Module):
    """A model that reads every window through a cache of its own; `nbytes` are the last one's."""

    def __init__(self, model: nn.Module, spec: CacheSpec) -> None:
        super().__init__()
        self.model, self.config, self.spec = model, model.config, spec
        self.nbytes = 0

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        cache = QuantizedCache(self.config, self.spec.keys, self.spec.values)
        found = self.model(input_ids, past_key_values=cache, use_cache=True)
        self.nbytes = cache.nbytes // input_ids.numel()
        return found


def smooth_attention(model: Any, tokens: Tensor, alpha: float) -> None:
    """QoQ's SmoothAttention (arXiv 2405.04532), folded: keys / s, queries * s with s = max|key|^alpha.

    The largest magnitude of a channel is that of the RoPE pair that it turns in.
    """
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    seams = {seam.name: seam for seam in LlamaAdapter().seams(model) if seam.kind == "query"}
    for i, layer in enumerate(cache.layers):
        seam = seams[f"model.layers.{i}.self_attn"]
        most = layer.keys.abs().amax((0, 2)).flatten().clone()
        label = torch.tensor(seam.ties)
        pairs = most.new_zeros(int(label.max()) + 1).scatter_reduce(0, label, most, "amax")
        fold_scale(model, seam, pairs[label].clamp(min=1e-5) ** -alpha)


def quality(
    model: nn.Module, tokens: Tensor, length: int, names: list[str]
) -> list[dict[str, Any]]:
    reference, rows = Remembered(model), []
    for name, spec in ((name, CACHES[name]) for name in names):
        cached = Cached(model, spec)
        found = {row["name"]: row for row in compare(reference, cached, tokens, window=length)}
        rows.append(
            {
                "cache": name,
                "full_precision": found["perplexity"]["full_precision"],
                "perplexity": found["perplexity"]["quantized"],
                "kl": found["KL divergence"]["quantized"],
                "top1": found["top-1 agreement"]["quantized"],
                "bytes": cached.nbytes,
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| cache | bytes a token | perplexity | KL divergence | top-1 agreement |",
        "|---" * 5 + "|",
        f"| full precision | | {rows[0]['full_precision']:.2f} | | |",
    ]
    for row in rows:
        figures = f"{row['perplexity']:.2f} | {row['kl']:.4f} | {row['top1']:.1%}"
        lines.append(f"| {row['cache']} | {row['bytes']:,} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--evaluate", type=int, default=4096)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--smooth", type=float, default=0, help="alpha of SmoothAttention")
    parser.add_argument("--caches", nargs="*", default=list(CACHES), choices=CACHES)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, dtype="float32")
    tokens = read_tokens(tokenizer, None, default="heldout")[: args.evaluate]
    if args.smooth:
        text = read_tokens(tokenizer, None, default="calibration")[: 4 * args.length]
        smooth_attention(model, text.view(4, -1), args.smooth)
    rows = quality(model, tokens, args.length, args.caches)
    finish(rows, table(rows), ["torch", "transformers"], args.json)


if __name__ == "__main__":
    main()
