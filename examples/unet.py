"""Quantize a diffusion U-Net: its sampler's trajectories, searched formats, learned rounding.

    python examples/unet.py FOLDER     # a folder of diffusers with a UNet2DModel; a tiny one if left out

Prints how far the noise prediction is from the full-precision model's.
"""

import sys

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from minifloat.calibrate.stats import sqnr
from minifloat.calibrate.trajectories import record
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.unet import UNetAdapter


def tiny() -> UNet2DModel:
    """A stand-in with random weights, for a try without a download."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )


def main(arguments: list[str]) -> float:
    """Returns the SQNR of the noise prediction in dB."""
    model = UNet2DModel.from_pretrained(arguments[0]) if arguments else tiny()
    model.eval()
    pipeline = DDIMPipeline(model, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    adapter = UNetAdapter.of(model)
    adapter.split(model)
    batches = record(model, lambda: pipeline(batch_size=4, num_inference_steps=10), limit=8)
    with torch.no_grad():
        expected = model(**batches[0]).sample
    method = build("fp-diffusion", {"weight_bits": "4", "group_size": "64", "steps": "100"})
    report = quantize(model, method, batches, adapter=adapter)
    with torch.no_grad():
        found = sqnr(expected, expected - model(**batches[0]).sample)
    bits = [row["bits"] for row in report["ledger"] if row["status"] == "quantized"]
    print(f"{len(bits)} layers at {sum(bits) / len(bits):.2f} bits: {found:.1f} dB")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
