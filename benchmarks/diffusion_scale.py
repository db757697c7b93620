"""Stable-Diffusion-shaped U-Nets at full size, random weights: peak memory of a nearest quantization.

    python -m benchmarks.diffusion_scale --shape sd15|sdxl [--dtype bfloat16] [--size 32]

One calibration call on latents of `size` x `size`, FP8 weights by channel and FP8 inputs by token,
rounded to nearest. The peak of the process, less what it held before the model, against the model's own
bytes. Time is mostly the two forwards; random weights are no claim about quality.
"""

import argparse
import resource
import time
from typing import Any

import torch

from minifloat.calibrate.walk import Pass
from minifloat.memory import resident
from minifloat.method import Method, quantize
from minifloat.passes.assign import assign_scales, round_to_nearest
from minifloat.plan import Plan
from minifloat.spec import FP8_CHANNEL, FP8_TOKEN, LayerSpec

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def build(shape: str, dtype: torch.dtype) -> Any:
    """The U-Net with small random weights, drawn in place."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model: Any = UNet2DConditionModel(sample_size=64, **SHAPES[shape])
    model = model.to(dtype).to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02) if parameter.ndim > 1 else parameter.data.fill_(0.5)
    return model.eval().requires_grad_(False)


def call(shape: str, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """One call of the denoiser."""
    width = SHAPES[shape]["cross_attention_dim"]
    arguments: dict[str, Any] = {
        "sample": torch.randn(1, 4, size, size, dtype=dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, 77, width, dtype=dtype),
    }
    if shape == "sdxl":
        added = {"text_embeds": torch.randn(1, 1280, dtype=dtype), "time_ids": torch.ones(1, 6)}
        arguments["added_cond_kwargs"] = added
    return arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", type=int, default=32)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    import diffusers  # noqa: F401  counted before the model

    before = resident()
    model = build(args.shape, dtype)
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    passes: tuple[Pass, ...] = (assign_scales(), round_to_nearest())
    plan = Plan((("*", LayerSpec(weight=FP8_CHANNEL, input=FP8_TOKEN)),))
    started = time.perf_counter()
    report = quantize(
        model, Method("nearest", "", plan, passes), [call(args.shape, args.size, dtype)]
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    done = sum(row["status"] == "quantized" for row in report["ledger"])
    print(
        f"| {args.shape} | {args.dtype} | {own / 2**30:.2f} GiB | {peak / 2**30:.2f} GiB | "
        f"{peak / own:.2f} | {(resident() - before) / 2**30:.2f} GiB | {done} | {seconds:.0f} s |"
    )


if __name__ == "__main__":
    main()
