"""dit-text: a diffusion transformer that draws emoji from captions.

Why this file exists: the claims about diffusion transformers need AdaLN-single, cross-attention and a
GELU feed-forward in a model that can be run in seconds. It is the ordinary `PixArtTransformer2DModel`
of diffusers on patches of 4 x 4 pixels; data, prompts and loop are those of `zoo.unet_text`.

    python -m zoo.train dit-text --out DIR            train (resumable)
"""

import argparse

from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from zoo import captioned, diffusion, prompts
from zoo.diffusion import Maker, Recipe

CPU = Recipe(peak_rate=8e-4)  # small matrices: bf16 gains nothing
GPU = Recipe(steps=20_000, batch=256, peak_rate=8e-4, low=True, checkpoint_seconds=60.0)


def build() -> PixArtTransformer2DModel:
    """A freshly initialised transformer, 4 M parameters, of 64 tokens."""
    return PixArtTransformer2DModel(
        sample_size=32,
        patch_size=4,
        in_channels=3,
        out_channels=3,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=32,
        cross_attention_dim=192,
        caption_channels=prompts.WIDTH,
    )


def pipeline(transformer: PixArtTransformer2DModel, plan: DDIMScheduler) -> PixArtAlphaPipeline:
    """The pipeline with neither VAE nor text encoder: its latents are pixels, its prompts ready."""
    return PixArtAlphaPipeline(
        transformer=transformer, scheduler=plan, vae=None, text_encoder=None, tokenizer=None
    )


MAKER = Maker(build, pipeline, captioned.forget)


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    recipe = CPU if options.device == "cpu" else GPU
    diffusion.run(MAKER, recipe, captioned.load(options, masked=True), options)
