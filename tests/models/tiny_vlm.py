"""Tiny random vision-language models of real classes of transformers, each with a picture and text."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

IMAGE_TOKEN = 60
TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
}
_QWEN_TEXT = TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_WIDE = {**_QWEN_VISION, "out_hidden_size": 32, "intermediate_size": 40}
_QWEN_TOKENS = {"video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}

# Family: (classes of the towers, their settings, the settings of the whole, picture tokens).
_Family = tuple[str, dict[str, Any], str, dict[str, Any], dict[str, Any], int]
FAMILIES: dict[str, _Family] = {
    "Llava": (
        "CLIPVision",
        {**_VISION, "projection_dim": 16},
        "Llama",
        TEXT,
        {"vision_feature_layer": -2},
        16,
    ),
    "LlavaOnevision": (
        "SiglipVision",
        _VISION,
        "Qwen2",
        TEXT,
        {"image_grid_pinpoints": [[16, 16]], "vision_feature_layer": -1},
        36,
    ),
    "Qwen2VL": (
        "",
        {**_QWEN_VISION, "embed_dim": 32, "mlp_ratio": 2},
        "",
        _QWEN_TEXT,
        _QWEN_TOKENS,
        4,
    ),
    "Qwen2_5_VL": (
        "",
        {**_WIDE, "window_size": 16, "fullatt_block_indexes": [1]},
        "",
        _QWEN_TEXT,
        _QWEN_TOKENS,
        4,
    ),
    "Qwen3VL": (
        "",
        {**_WIDE, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        "",
        _QWEN_TEXT,
        _QWEN_TOKENS,
        4,
    ),
    "InternVL": (
        "InternVLVision",
        {**_VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        "Qwen2",
        TEXT,
        {"downsample_ratio": 0.5},
        4,
    ),
    "SmolVLM": ("", _VISION, "Llama", TEXT, {"scale_factor": 2}, 4),
    "Idefics3": ("", _VISION, "Llama", TEXT, {"scale_factor": 2}, 4),
    "PaliGemma": (
        "SiglipVision",
        {**_VISION, "projection_dim": 32},
        "Gemma",
        TEXT,
        {"projection_dim": 32},
        16,
    ),
    "Gemma3": (
        "SiglipVision",
        _VISION,
        "Gemma3Text",
        TEXT | {"sliding_window": 8},
        {"mm_tokens_per_image": 4},
        4,
    ),
}


def build(
    family: str, dtype: torch.dtype = torch.float64, image_token: int = IMAGE_TOKEN, **changes: Any
) -> nn.Module:
    """A model of random weights; `changes` are to its text settings."""
    torch.manual_seed(0)
    vision_class, vision, text_class, text, whole, _ = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(
        vision_config=_config(vision_class, vision),
        text_config=_config(text_class, text | changes),
        image_token_id=image_token,
        image_token_index=image_token,
        **whole,
    )
    model: nn.Module = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    return model.to(dtype).eval()


def batch(family: str, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, Tensor]:
    """One sequence: two tokens of text, the picture, four tokens of text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 58, (1, 6), generator=generator)
    count = FAMILIES[family][-1]
    ids = torch.cat([ids[:, :2], torch.full((1, count), IMAGE_TOKEN), ids[:, 2:]], 1)
    if family.startswith("Qwen"):
        ids[0, 1] = 62
        pixels = torch.randn(16, 3 * 2 * 16, generator=generator).to(dtype)
        grid, kinds = torch.tensor([[1, 4, 4]]), (ids == IMAGE_TOKEN).int()
        return {
            "input_ids": ids,
            "pixel_values": pixels,
            "image_grid_thw": grid,
            "mm_token_type_ids": kinds,
        }
    pixels = torch.randn(1, 3, 16, 16, generator=generator).to(dtype)
    found = {"input_ids": ids, "pixel_values": pixels}
    if family == "LlavaOnevision":
        found["pixel_values"] = pixels[None].repeat(1, 2, 1, 1, 1)
        found["image_sizes"] = torch.tensor([[16, 16]])
    if family in ("SmolVLM", "Idefics3"):
        found["pixel_values"] = pixels[None]
    if family in ("PaliGemma", "Gemma3"):
        found["token_type_ids"] = (ids == IMAGE_TOKEN).long()
    return found


def runner(family: str, model: nn.Module) -> Callable[[], Tensor]:
    """The model's answer to one batch."""
    inputs = batch(family)
    return lambda: model(**inputs, use_cache=False).logits


def _config(name: str, settings: dict[str, Any]) -> Any:
    return getattr(transformers, f"{name}Config")(**settings) if name else settings
