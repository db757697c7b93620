"""A 7B-shaped Llama in bfloat16, quantized within a limit of memory far below its size.

    python -m benchmarks.larger_than_memory FOLDER [--memory 6GB] [--method nearest|gptq] [--layers 32]

Random weights are written block by block into FOLDER/model (13.5 GB, once), with the small tokenizer of
the zoo. Then the ordinary command runs: two windows of 64 tokens, no evaluation, since random weights
predict nothing. The figure is the peak resident memory of that process.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from minifloat.shards import write

WIDTH, FEED, TOKENS = 4096, 11008, 32000
SHAPES = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (FEED, WIDTH),
    "mlp.up_proj": (FEED, WIDTH),
    "mlp.down_proj": (WIDTH, FEED),
}
ZOO = Path(__file__).parents[1] / "zoo" / "llama-tiny"


def tensors(layers: int) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors, made one after the other."""

    def random(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)

    yield "model.embed_tokens.weight", random(TOKENS, WIDTH)
    yield "lm_head.weight", random(TOKENS, WIDTH)
    yield "model.norm.weight", torch.ones(WIDTH, dtype=torch.bfloat16)
    for i in range(layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{i}.{name}.weight", torch.ones(WIDTH, dtype=torch.bfloat16)
        for name, shape in SHAPES.items():
            yield f"model.layers.{i}.{name}.weight", random(*shape)


def model(folder: Path, layers: int) -> None:
    """Write the model, unless it is there."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write(folder, tensors(layers))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": WIDTH,
        "intermediate_size": FEED,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": TOKENS,
        "tie_word_embeddings": False,
    }
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ZOO / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--method", choices=("nearest", "gptq"), default="nearest")
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args()
    source, out = args.folder / "model", args.folder / args.method
    model(source, args.layers)
    command = [sys.executable, "-m", "minifloat", "quantize", str(source), "--out", str(out)]
    command += ["--memory", args.memory, "--samples", "2", "--length", "64", "--evaluate", "0"]
    started = time.perf_counter()
    subprocess.run([*command, "--set", f"solver={args.method}", "--set", "rank=0"], check=True)
    seconds = time.perf_counter() - started
    report = json.loads((out / "report.json").read_text())
    size = report["size"]
    print(
        f"| {args.method} | {args.memory} | {size['before'] / 1e9:.2f} GB | "
        f"{size['after'] / 1e9:.2f} GB | {report['peak_memory'] / 1e9:.2f} GB | {seconds:.0f} s |"
    )


if __name__ == "__main__":
    main()
