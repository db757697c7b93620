"""Denoisers of diffusers with small random weights, and what they are called with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """A class of diffusers, a small configuration, and its inputs: shapes of noise, or makers."""

    config: dict[str, Any]
    noise: Shapes
    other: Callable[[], dict[str, Any]] = dict
    kind: str = ""  # the class, where the name of the case is not it
    splits: int = 0  # layers fed by a concatenation

    def model(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = getattr(diffusers, self.kind or name)(**self.config)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # AdaLN gates and heads may start at zero
            if not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data = 0.1 * noise
        return model.eval()

    def batches(self, count: int = 2) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(2)

        def one(step: int) -> dict[str, Any]:
            noise = {k: torch.randn(v, generator=generator) for k, v in self.noise.items()}
            return noise | {"timestep": torch.tensor([step, 900 - step])} | self.other()

        return [one(step) for step in (20, 300, 600, 870)[:count]]


IMAGE = (2, 4, 8, 8)
VIDEO = (2, 4, 2, 8, 8)  # [batch, channels, frames, height, width]
TEXT = (2, 5, 24)
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
ADA: dict[str, Any] = HEADS | {"num_layers": 2, "in_channels": 4, "sample_size": 8, "patch_size": 2}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
CROSS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "layers_per_block": 1,
}


def positions(*shape: int) -> Callable[[], dict[str, Tensor]]:
    """Flux's ids of image and text tokens."""
    return lambda: {"img_ids": torch.zeros(16, *shape), "txt_ids": torch.zeros(5, *shape)}


CASES: dict[str, Case] = {
    "UNet2DModel": Case(
        UNET
        | {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
        },
        {"sample": (2, 3, 8, 8)},
        splits=12,
    ),
    "UNet2DConditionModel, Stable Diffusion 1.5": Case(
        UNET
        | CROSS
        | {
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        },
        {"sample": IMAGE, "encoder_hidden_states": TEXT},
        kind="UNet2DConditionModel",
        splits=12,
    ),
    "UNet2DConditionModel, SDXL": Case(
        UNET
        | CROSS
        | {
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 12,
        },
        {"sample": IMAGE, "encoder_hidden_states": TEXT},
        lambda: {
            "added_cond_kwargs": {"text_embeds": torch.ones(2, 12), "time_ids": torch.ones(2, 6)}
        },
        kind="UNet2DConditionModel",
        splits=12,
    ),
    "DiTTransformer2DModel": Case(
        ADA | {"num_embeds_ada_norm": 1000},
        {"hidden_states": IMAGE},
        lambda: {"class_labels": torch.tensor([3, 7])},
    ),
    "PixArtTransformer2DModel": Case(
        ADA | {"cross_attention_dim": 32, "caption_channels": 24},
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
        lambda: {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "HunyuanDiT2DModel": Case(
        ADA
        | {
            "num_layers": 4,
            "hidden_size": 32,
            "cross_attention_dim": 24,
            "cross_attention_dim_t5": 24,
            "pooled_projection_dim": 16,
            "text_len": 5,
            "text_len_t5": 6,
            "mlp_ratio": 2.0,
        },
        {
            "hidden_states": IMAGE,
            "encoder_hidden_states": TEXT,
            "encoder_hidden_states_t5": (2, 6, 24),
        },
        lambda: {
            "timestep": torch.tensor([20.0, 700.0]),
            "text_embedding_mask": torch.ones(2, 5),
            "text_embedding_mask_t5": torch.ones(2, 6),
            "image_meta_size": torch.ones(2, 6),
            "style": torch.tensor([0, 0]),
            "image_rotary_emb": (torch.ones(16, 16), torch.zeros(16, 16)),
        },
        splits=1,
    ),
    "SD3Transformer2DModel": Case(
        ADA
        | {
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT, "pooled_projections": (2, 20)},
    ),
    "FluxTransformer2DModel": Case(
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 20,
            "axes_dims_rope": (4, 4, 8),
        },
        {
            "hidden_states": (2, 16, 8),
            "encoder_hidden_states": TEXT,
            "pooled_projections": (2, 20),
        },
        positions(3),
        splits=2,
    ),
    "ChromaTransformer2DModel": Case(
        HEADS
        | {
            "in_channels": 8,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
        {"hidden_states": (2, 16, 8), "encoder_hidden_states": TEXT},
        positions(3),
        splits=2,
    ),
    "AuraFlowTransformer2DModel": Case(
        HEADS
        | {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 16,
        },
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
    ),
    "SanaTransformer2DModel": Case(
        ADA
        | {
            "patch_size": 1,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
        },
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
    ),
    "CogView4Transformer2DModel": Case(
        HEADS
        | {
            "num_layers": 2,
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 8,
            "rope_axes_dim": (4, 4),
        },
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
        lambda: dict.fromkeys(
            ("original_size", "target_size", "crop_coords"), torch.full((2, 2), 8.0)
        ),
    ),
    "Lumina2Transformer2DModel": Case(
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 4, 8),
            "axes_lens": (16, 16, 16),
            "cap_feat_dim": 24,
        },
        {"hidden_states": IMAGE, "encoder_hidden_states": TEXT},
        lambda: {"encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool)},
    ),
    "QwenImageTransformer2DModel": Case(
        HEADS
        | {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 4, 8),
        },
        {"hidden_states": (2, 16, 16), "encoder_hidden_states": TEXT},
        lambda: {
            "encoder_hidden_states_mask": torch.ones(2, 5, dtype=torch.bool),
            "img_shapes": [[(1, 4, 4)]] * 2,
        },
    ),
    "WanTransformer3DModel": Case(
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT},
    ),
    "LatteTransformer3DModel": Case(
        ADA
        | {
            "out_channels": 4,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "num_embeds_ada_norm": 1000,
            "activation_fn": "gelu-approximate",
            "video_length": 2,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT},
    ),
    "CogVideoXTransformer3DModel": Case(
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 5,
        },
        {"hidden_states": (2, 2, 4, 8, 8), "encoder_hidden_states": TEXT},
    ),
    "LTXVideoTransformer3DModel": Case(
        HEADS
        | {
            "in_channels": 8,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "num_layers": 2,
            "caption_channels": 24,
        },
        {"hidden_states": (2, 16, 8), "encoder_hidden_states": TEXT},
        lambda: {
            "encoder_attention_mask": torch.ones(2, 5),
            "num_frames": 1,
            "height": 4,
            "width": 4,
        },
    ),
    "MochiTransformer3DModel": Case(
        HEADS
        | {
            "in_channels": 4,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "text_embed_dim": 24,
            "time_embed_dim": 16,
            "max_sequence_length": 5,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT},
        lambda: {"encoder_attention_mask": torch.ones(2, 5, dtype=torch.bool)},
    ),
    "AllegroTransformer3DModel": Case(
        HEADS
        | {
            "num_layers": 2,
            "cross_attention_dim": 32,
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
            "caption_channels": 24,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT},
        lambda: {"image_rotary_emb": None},
    ),
    "HunyuanVideoTransformer3DModel": Case(
        HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 24,
            "pooled_projection_dim": 20,
            "rope_axes_dim": (4, 4, 8),
            "guidance_embeds": False,
        },
        {"hidden_states": VIDEO, "encoder_hidden_states": TEXT, "pooled_projections": (2, 20)},
        lambda: {"encoder_attention_mask": torch.ones(2, 5)},
        splits=2,
    ),
}
