"""unet-text: a U-Net that draws emoji from captions.

Why this file exists: the claims about text-to-image U-Nets need skip concatenations, cross-attention
and guidance in a model that can be run in seconds. It is the ordinary `UNet2DConditionModel` of
diffusers on pixels, 32 x 32, inside a `StableDiffusionPipeline`; captions come through `zoo.prompts`,
the loop is `zoo.diffusion`.

    python -m zoo.train unet-text --out DIR            train (resumable)
"""

import argparse

from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from zoo import captioned, diffusion, prompts
from zoo.diffusion import Maker, Recipe

CPU = Recipe(low=True)
GPU = Recipe(steps=20_000, batch=256, low=True, checkpoint_seconds=60.0)


def build() -> UNet2DConditionModel:
    """A freshly initialised U-Net, 2.8 M parameters, with attention at 8 x 8 pixels."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=prompts.WIDTH,
        attention_head_dim=4,  # heads, by a misnomer that diffusers keeps
        norm_num_groups=8,
    )


def pipeline(unet: UNet2DConditionModel, plan: DDIMScheduler) -> StableDiffusionPipeline:
    """The pipeline with neither VAE nor text encoder: its latents are pixels, its prompts ready.

    It never hides the padding of a prompt, so the model was not trained with masks either.
    """
    return StableDiffusionPipeline(
        unet=unet,
        scheduler=plan,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


MAKER = Maker(build, pipeline, captioned.forget)


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    recipe = CPU if options.device == "cpu" else GPU
    diffusion.run(MAKER, recipe, captioned.load(options, masked=False), options)
