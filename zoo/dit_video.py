"""dit-video: a diffusion transformer that draws moving emoji from captions.

Why this file exists: the claims about video transformers (ViDiT-Q, arXiv:2406.02540) need attention
over space and attention over time in a model that can be run in seconds. It is the ordinary
`LatteTransformer3DModel` of diffusers. It learns to draw before it learns to move, as Latte's own
text-to-video model began as an image model: three of the blocks of dit-text are trained on pictures,
of which there are four times as many as clips, and each is an eighth of the work. Then temporal blocks
that begin as identities come between them, and all is trained on clips.

    python -m zoo.train dit-video --out DIR            train (resumable)
"""

import argparse
import functools
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
)
from torch import nn

from zoo import captioned, clips, diffusion, dit_text, emoji, prompts, runs
from zoo.diffusion import PIPELINE, Maker, Recipe
from zoo.noising import Data

BEGINNING = Path(__file__).resolve().parent / "dit-text" / "transformer"
BLOCKS = (0, 3, 5)  # of it: the three that draw best without the others

PICTURES = Recipe(
    steps=2000,
    peak_rate=8e-4,
    warmup=50,
    fall=0.4,
    average=0.995,
    checkpoint_seconds=120.0,
)
CPU = Recipe(
    steps=1500,
    batch=8,
    peak_rate=5e-4,
    warmup=30,
    fall=0.4,
    average=0.98,
    low=True,
    validate_every=250,
    checkpoint_seconds=120.0,
)


def pruned() -> PixArtTransformer2DModel:
    """The spatial half: dit-text with three of its blocks."""
    model = PixArtTransformer2DModel.from_pretrained(BEGINNING, torch_dtype=torch.float32)
    model.transformer_blocks = nn.ModuleList([model.transformer_blocks[i] for i in BLOCKS])
    model.register_to_config(num_layers=len(BLOCKS))
    return model


def build(pictures: Path) -> LatteTransformer3DModel:
    """A transformer of 3.6 M parameters and 8 x 64 tokens that draws as the model in a folder does."""
    model = LatteTransformer3DModel(
        sample_size=emoji.SIZE,
        video_length=clips.FRAMES,
        patch_size=4,
        in_channels=3,
        out_channels=6,  # its pipeline drops the second half, where others learn a variance
        num_layers=len(BLOCKS),
        num_attention_heads=6,
        attention_head_dim=32,
        cross_attention_dim=192,
        caption_channels=prompts.WIDTH,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    begin(model, PixArtTransformer2DModel.from_pretrained(pictures, torch_dtype=torch.float32))
    return model


@torch.no_grad()
def begin(model: LatteTransformer3DModel, pictures: PixArtTransformer2DModel) -> None:
    """Give a model the weights of one of pictures, in place, and let frames ignore each other."""
    weights = pictures.state_dict()
    for name in ("proj_out.weight", "proj_out.bias"):  # rows are pixels of a patch, then channels
        own = weights[name].unflatten(0, (-1, pictures.config.out_channels))
        weights[name] = torch.cat([own, torch.zeros_like(own)], 1).flatten(0, 1)
    model.load_state_dict(model.state_dict() | weights)
    for block in model.temporal_transformer_blocks:
        for layer in (block.attn1.to_out[0], block.ff.net[2]):
            layer.weight.zero_()
            layer.bias.zero_()


def pipeline(transformer: LatteTransformer3DModel, plan: DDIMScheduler) -> LattePipeline:
    """The pipeline with neither VAE nor text encoder; it never hides the padding of a prompt."""
    return LattePipeline(
        transformer=transformer, scheduler=plan, vae=None, text_encoder=None, tokenizer=None
    )


def load(options: argparse.Namespace) -> tuple[Data, Data]:
    """Clips and prompts to train on, and the held-out ones; a clip's caption is that of a picture."""
    moving, read = clips.load(options.cache), captioned.words(emoji.load(options.cache), options)
    own = prompts.pick(read, [read.captions.index(one.caption) for one in moving.emoji])
    return captioned.split(moving, {captioned.TEXT: own.text}, options.device)


def stage(options: argparse.Namespace, out: Path) -> argparse.Namespace:
    """The options of one stage, which goes on only if it had begun."""
    resume = options.resume and (out / runs.CHECKPOINT).exists()
    return argparse.Namespace(**vars(options) | {"out": out, "resume": resume})


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`; `--steps` is the length of either stage."""
    first = options.out / "pictures"
    maker = Maker(pruned, dit_text.pipeline, captioned.forget)
    diffusion.run(maker, PICTURES, captioned.load(options, masked=False), stage(options, first))
    grown = functools.partial(build, first / PIPELINE / "transformer")
    maker = Maker(grown, pipeline, captioned.forget)
    diffusion.run(maker, CPU, load(options), stage(options, options.out))
