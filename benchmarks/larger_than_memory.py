"""A 7B-shaped Llama in bfloat16, quantized within a limit of memory far below its size.

    python -m benchmarks.larger_than_memory FOLDER [--memory 6GB] [--solver nearest|gptq] [--layers 32]

Random weights are written block by block into FOLDER/model (13.5 GB, once), with the small tokenizer of
the zoo. Then the ordinary command runs: two windows of 64 tokens, no search of scales (it takes time and
no memory) and no evaluation, since random weights predict nothing. The figure is the peak resident
memory of that process, and the curve beside the result, SOLVER.jsonl, what it holds every few seconds. A
run that was stopped goes on where it was.
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

from benchmarks.common import read_rows
from minifloat.charts import STYLE, Series, plot
from minifloat.jobs.unfinished import unfinished
from minifloat.shards import write

WIDTH, FEED, TOKENS = 4096, 11008, 32000
SHAPES = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (FEED, WIDTH),
    "mlp.up_proj": (FEED, WIDTH),
    "mlp.down_proj": (WIDTH, FEED),
}
ZOO = Path(__file__).parents[1] / "zoo" / "llama-tiny"
EVERY = 5.0  # seconds between two looks at the memory


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


def watch(command: list[str], curve: Path) -> int:
    """Run a command to its end, writing its resident memory down; returns the most in bytes."""
    rows = read_rows(curve)
    before, started = (rows[-1]["seconds"] if rows else 0.0), time.perf_counter()
    run = subprocess.Popen(command)
    most = max((row["peak"] for row in rows), default=0)
    while run.poll() is None:
        now, peak = _memory(run.pid)
        most = max(most, peak)
        seconds = round(before + time.perf_counter() - started, 1)
        with curve.open("a") as file:
            file.write(json.dumps({"seconds": seconds, "resident": now, "peak": peak}) + "\n")
        time.sleep(EVERY)
    if run.returncode:
        sys.exit(run.returncode)
    return most


def _memory(pid: int) -> tuple[int, int]:
    """Bytes that a process holds now, and the most so far; zeros once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {key: value for key, _, value in (line.partition(":") for line in lines)}
    now, most = (int(found.get(key, "0").split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def draw(curve: Path, drawing: Path) -> None:
    """The curve as a drawing, a point a minute."""
    rows = {int(row["seconds"] // 60): row["resident"] / 1e9 for row in read_rows(curve)}
    points = [(f"minute {i}", rows.get(i)) for i in range(max(rows) + 1)]
    drawn = plot([Series("resident", "a", points, line=True)], "minutes", "resident memory", "GB")
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    drawing.write_text(drawn.replace("<svg ", head, 1).replace(">", f"><style>{STYLE}</style>", 1))


def row(solver: str, memory: str, out: Path, curve: Path, peak: int) -> str:
    """The line of a finished run: limit, sizes before and after, peak, time."""
    seconds = read_rows(curve)[-1]["seconds"]
    size = json.loads((out / "report.json").read_text())["size"]
    return (
        f"| {solver} | {memory} | {size['before'] / 1e9:.2f} GB | "
        f"{size['after'] / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {seconds:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--solver", choices=("nearest", "gptq"), default="nearest")
    parser.add_argument("--layers", type=int, default=32)
    args = parser.parse_args()
    source, out = args.folder / "model", args.folder / args.solver
    model(source, args.layers)
    command = [sys.executable, "-m", "minifloat", "quantize", str(source), "--out", str(out)]
    command += ["--memory", args.memory, "--samples", "2", "--length", "64", "--evaluate", "0"]
    command += ["--set", f"solver={args.solver}", "--set", "rank=0", "--set", "search=false"]
    command += ["--resume"] if any(unfinished(out).glob("*.safetensors")) else []
    curve = out.with_suffix(".jsonl")
    peak = watch(command, curve)
    draw(curve, curve.with_suffix(".svg"))
    print(row(args.solver, args.memory, out, curve, peak))


if __name__ == "__main__":
    main()
