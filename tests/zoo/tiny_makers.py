"""Tiny makers of every kind of picture model in the zoo, with pictures of one colour each to learn."""

from typing import Any

import torch
from diffusers import (
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor

from minifloat.models.prompts import Prompts
from zoo import captioned, dit_text, dit_video, prompts, unet_class, unet_text, unet_text_1step
from zoo.captioned import MASK, TEXT
from zoo.diffusion import Maker
from zoo.noising import Data
from zoo.unet_class import CLASS, CLASSES

WIDTH = 16  # of made-up prompts
FRAMES = 3
UNET = {"sample_size": 32, "block_out_channels": (8, 8, 8), "layers_per_block": 1}


def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **UNET,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=1,
        norm_num_groups=4,
    )


def class_unet() -> UNet2DModel:
    return UNet2DModel(
        **UNET,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=len(CLASSES),
    )


TRANSFORMER = {
    "sample_size": 32,
    "patch_size": 8,
    "in_channels": 3,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": WIDTH,
}


def dit() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(**TRANSFORMER, out_channels=3)


def latte() -> LatteTransformer3DModel:
    return LatteTransformer3DModel(
        **TRANSFORMER,
        out_channels=6,
        video_length=FRAMES,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )


MAKERS = {
    "unet": Maker(unet, unet_text.pipeline, captioned.forget),
    "dit": Maker(dit, dit_text.pipeline, captioned.forget),
    "few-step": Maker(unet, unet_text_1step.pipeline, captioned.forget, unet_text_1step.on_path),
    "video": Maker(latte, dit_video.pipeline, captioned.forget),
    "class": Maker(class_unet, unet_class.pipeline, unet_class.ask),
}


def data(count: int, seed: int, kind: str = "dit") -> Data:
    """Pictures of one colour each, which the prompt names by its second token."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (count, 3), generator=generator)
    text = torch.zeros(count, 4, WIDTH, dtype=torch.float16)
    text[:, 0], text[:, 1, :3] = 10.0, (colours / 64).half()
    asked = {TEXT: text}
    if kind == "dit":
        asked[MASK] = torch.tensor([True, True, False, False]).expand(count, -1)
    if kind == "class":
        asked = {CLASS: colours[:, 0] % len(CLASSES)}
    images = colours[..., None, None].expand(-1, -1, 32, 32).to(torch.uint8).contiguous()
    return Data(shaped(images, kind, generator), asked)


def shaped(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Pictures as still clips, or as the ends of straight paths from noise."""
    if kind == "video":
        return images[:, :, None].expand(-1, -1, FRAMES, -1, -1).contiguous()
    if kind == "few-step":
        noise = torch.randn(images.shape, generator=generator)
        parts = torch.linspace(0, 1, unet_text_1step.STEPS + 1)[:, None, None, None]
        return torch.lerp(noise[:, None], (images / 127.5 - 1)[:, None], parts).half()
    return images


def requests(pipe: Any, kind: str) -> Prompts:
    """Two requests as a pipeline takes them."""
    asked = data(2, 2, kind).asked
    if kind == "class":
        return Prompts(["a", "b"], {CLASS: asked[CLASS].tolist()})
    masks = asked.get(MASK, torch.ones(2, 4, dtype=torch.bool))
    return prompts.for_pipeline(prompts.Prompts(["a", "b"], asked[TEXT], masks), pipe)
