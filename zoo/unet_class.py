"""unet-class: a U-Net that draws emoji of a class: one of twelve groups in one of two styles.

Why this file exists: quantizers for diffusion models are first shown on class-conditional U-Nets of
pixels, without words or cross-attention. It is the ordinary `UNet2DModel` of diffusers, sampled with
DDIM in the one pipeline of diffusers that hands classes to such a network. Layers that unet-text has
too begin as there; attention and classes begin at random.

    python -m zoo.train unet-class --out DIR            train (resumable)
"""

import argparse
from pathlib import Path

import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor

from zoo import captioned, diffusion, emoji, judge
from zoo.diffusion import Maker, Recipe
from zoo.emoji import GROUPS, NO_GROUP, Pictures
from zoo.noising import Asked, Data

CLASS = "class_labels"
CLASSES = [f"{group}, {style}" for group in GROUPS for style in judge.STYLES]
TEXT = Path(__file__).resolve().parent / "unet-text" / "unet"

CPU = Recipe(steps=4000, wordless=0.0, warmup=50, fall=0.4, average=0.99, low=True)


def build() -> UNet2DModel:
    """A U-Net of 1.8 M parameters with attention at 8 x 8 pixels."""
    model = UNet2DModel(
        sample_size=emoji.SIZE,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=24,
        norm_num_groups=8,
        num_class_embeds=len(CLASSES),
    )
    begin(model, UNet2DConditionModel.from_pretrained(TEXT, torch_dtype=torch.float32))
    return model


def begin(model: UNet2DModel, other: UNet2DConditionModel) -> None:
    """Give a model, in place, every weight of another that has the same name and shape."""
    own, given = model.state_dict(), other.state_dict()
    same = {name: w for name, w in given.items() if name in own and own[name].shape == w.shape}
    model.load_state_dict(same, strict=False)


def pipeline(unet: UNet2DModel, plan: DDIMScheduler) -> ConsistencyModelPipeline:
    """A sampler that hands classes to a U-Net; despite its name it takes any scheduler."""
    return ConsistencyModelPipeline(unet=unet, scheduler=plan)


def ask(asked: Asked, chosen: Tensor) -> Asked:
    """The classes as they are: there is no guidance."""
    return asked


def label(one: emoji.Emoji) -> int:
    """The place in CLASSES of an emoji that belongs to a group."""
    return one.group * len(judge.STYLES) + judge.STYLES.index(one.style)


def load(options: argparse.Namespace) -> tuple[Data, Data]:
    """Pictures and classes to train on, and the held-out ones."""
    pictures = emoji.load(options.cache)
    places = [i for i, one in enumerate(pictures.emoji) if one.group != NO_GROUP]
    own = Pictures([pictures.emoji[i] for i in places], pictures.images[places])
    asked = {CLASS: torch.tensor([label(one) for one in own.emoji])}
    return captioned.split(own, asked, options.device)


MAKER = Maker(build, pipeline, ask)


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    diffusion.run(MAKER, CPU, load(options), options)
