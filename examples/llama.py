"""Quantize a Llama-shaped model in Python, with a plan of one's own, and judge it.

    python examples/llama.py [MODEL] [OUT]

FP4 weights in groups of 64 and FP8 activations everywhere, except for the layers that write into the
residual stream, which keep FP8 weights. MODEL defaults to the small Llama that lies in `zoo/`.
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

from minifloat import SPECS, LayerSpec, Plan, quantize
from minifloat.evaluate.compare import compare
from minifloat.export.native import save
from minifloat.methods import build
from minifloat.models.load import load_model, read_tokens, sample_windows


def main(source: str, out: Path) -> None:
    model, tokenizer = load_model(source, dtype="float32")
    full_precision = copy.deepcopy(model)
    tokens = read_tokens(tokenizer, None, default="calibration")
    batches = list(sample_windows(tokens, count=8, length=128, seed=0).split(4))

    token = SPECS["fp8-token"]
    residual = LayerSpec(weight=SPECS["fp8-channel"], input=token)
    others = LayerSpec(weight=replace(SPECS["fp4-g128"], tile=(1, 64)), input=token)
    plan = Plan((("*.o_proj", residual), ("*.down_proj", residual), ("*", others)))

    report = quantize(model, build("zeroquant-fp", {}), batches, plan=plan)
    for row in report["ledger"]:
        print(f"{row['name']:45} {row['weight'] or row['reason']}")
    held_out = read_tokens(tokenizer, None, default="heldout")[:1024]
    for metric in compare(full_precision, model, held_out, window=128):
        print(f"{metric['name']:20} {metric['full_precision']:.4f} -> {metric['quantized']:.4f}")
    out.mkdir(parents=True, exist_ok=True)
    save(model, plan, out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    here = Path(__file__).parent
    main(
        sys.argv[1] if len(sys.argv) > 1 else str(here.parent / "zoo" / "llama-tiny"),
        Path(sys.argv[2] if len(sys.argv) > 2 else "llama-fp4"),
    )
