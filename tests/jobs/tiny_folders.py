"""Folders of tiny random models, one of each family, as the command line takes them."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaProcessor

from tests.models import tiny_lm, tiny_vlm

TOKENIZER = Path(__file__).parents[2] / "zoo" / "llama-tiny"
VOCABULARY = 2048


def language(folder: Path, family: str = "Llama", **changes: Any) -> Path:
    """A causal language model with the tokenizer of the zoo."""
    model: Any = tiny_lm.build(family, vocab_size=VOCABULARY, **changes).float()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return folder


def vision_language(folder: Path) -> Path:
    """A LLaVA with its processor."""
    settings: dict[str, Any] = {"vocab_size": VOCABULARY + 8}
    model: Any = tiny_vlm.build("Llava", torch.float32, VOCABULARY, **settings)
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 16, "width": 16}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def text(path: Path) -> Path:
    """A text of some hundred tokens; the packaged one takes a second to cut into tokens."""
    path.write_text("The people of the United States are many. " * 40)
    return path


def pairs(folder: Path, count: int = 8) -> Path:
    """Pictures of one colour and what colour that is."""
    folder.mkdir()
    lines = []
    for i in range(count):
        shade = 255 * i // count
        Image.new("RGB", (20, 30), (shade, 255 - shade, 0)).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"The colour is number {i}."}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def unet(folder: Path) -> Path:
    """A pipeline of plain noise."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(folder)
    return folder


def dit(folder: Path) -> Path:
    """A class-conditional transformer in the latent space of a tiny autoencoder."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        norm_num_groups=1,
    )
    decoder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    DiTPipeline(network, decoder, DDIMScheduler()).save_pretrained(folder)
    return folder


FAMILIES = {
    "language": language,
    "vision-language": vision_language,
    "mamba": lambda folder: language(folder, "Mamba"),
    "unet": unet,
    "dit": dit,
}
