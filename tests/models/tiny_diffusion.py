"""Tiny random models of real classes of diffusers, each with inputs that reach all of it."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
}
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
_IMAGE: dict[str, Any] = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "patch_size": 2}
_STREAMS: dict[str, Any] = {"joint_attention_dim": 12, "pooled_projection_dim": 10}


def noise(*shape: int) -> Tensor:
    """Numbers that are the same for one shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _ids(count: int) -> Tensor:
    return torch.arange(count * 3, dtype=torch.float64).reshape(count, 3) % 5


def _step() -> Tensor:
    return torch.tensor([3])


# Class name: (config, inputs).
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "UNet2DModel": (
        {
            **_UNET,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
            "resnet_time_scale_shift": "scale_shift",
        },
        {"sample": noise(1, 2, 8, 8), "timestep": 3},
    ),
    "UNet2DConditionModel": (
        {
            **_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
        },
        {"sample": noise(1, 2, 8, 8), "timestep": 3, "encoder_hidden_states": noise(1, 5, 12)},
    ),
    "ControlNetModel": (
        {
            "in_channels": 2,
            "layers_per_block": 1,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "conditioning_embedding_out_channels": (4, 8),
        },
        {
            "sample": noise(1, 2, 8, 8),
            "timestep": 3,
            "encoder_hidden_states": noise(1, 5, 12),
            "controlnet_cond": noise(1, 3, 16, 16),
        },
    ),
    "AutoencoderKL": (
        {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "latent_channels": 2,
        },
        {"sample": noise(1, 3, 8, 8)},
    ),
    "DiTTransformer2DModel": (
        {**_HEADS, **_IMAGE, "norm_num_groups": 1},
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "class_labels": torch.tensor([1]),
        },
    ),
    "PixArtTransformer2DModel": (
        {**_HEADS, **_IMAGE, "cross_attention_dim": 16, "caption_channels": 12},
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "SD3Transformer2DModel": (
        {
            **_HEADS,
            **_IMAGE,
            **_STREAMS,
            "caption_projection_dim": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "pooled_projections": noise(1, 10),
        },
    ),
    "FluxTransformer2DModel": (
        {
            **_HEADS,
            **_STREAMS,
            "in_channels": 4,
            "num_single_layers": 2,
            "axes_dims_rope": (4, 2, 2),
            "guidance_embeds": False,
        },
        {
            "hidden_states": noise(1, 6, 4),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "pooled_projections": noise(1, 10),
            "img_ids": _ids(6),
            "txt_ids": _ids(5),
        },
    ),
    "ChromaTransformer2DModel": (
        {
            "patch_size": 1,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 8,
            "approximator_layers": 1,
        },
        {
            "hidden_states": noise(1, 6, 4),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "img_ids": _ids(6),
            "txt_ids": _ids(5),
        },
    ),
    "StableAudioDiTModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 12,
        },
        {
            "hidden_states": noise(1, 4, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "global_hidden_states": noise(1, 1, 16),
            "rotary_embedding": (noise(9, 4), noise(9, 4)),
        },
    ),
    "AuraFlowTransformer2DModel": (
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 2,
            "out_channels": 2,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 64,
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            **_HEADS,
            "in_channels": 2,
            "out_channels": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "patch_size": 2,
            "max_text_seq_length": 5,
        },
        {
            "hidden_states": noise(1, 2, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
        },
    ),
    "CogView4Transformer2DModel": (
        {
            **_HEADS,
            "patch_size": 2,
            "in_channels": 2,
            "out_channels": 2,
            "text_embed_dim": 12,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "rope_axes_dim": (8, 8),
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "original_size": torch.tensor([[8, 8]]),
            "target_size": torch.tensor([[8, 8]]),
            "crop_coords": torch.tensor([[0, 0]]),
        },
    ),
    "HunyuanDiT2DModel": (
        {
            **_HEADS,
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 2,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 12,
            "text_len": 3,
            "text_len_t5": 3,
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step().double(),
            "encoder_hidden_states": noise(1, 3, 12),
            "text_embedding_mask": torch.ones(1, 3),
            "encoder_hidden_states_t5": noise(1, 3, 16),
            "text_embedding_mask_t5": torch.ones(1, 3),
            "image_meta_size": torch.tensor([[8.0] * 6]),
            "style": torch.tensor([0]),
            "image_rotary_emb": [noise(16, 8), noise(16, 8)],
        },
    ),
    "HunyuanVideoTransformer3DModel": (
        {
            **_HEADS,
            "in_channels": 2,
            "out_channels": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "text_embed_dim": 12,
            "pooled_projection_dim": 10,
            "rope_axes_dim": (2, 4, 2),
        },
        {
            "hidden_states": noise(1, 2, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "encoder_attention_mask": torch.ones(1, 5),
            "pooled_projections": noise(1, 10),
            "guidance": torch.tensor([1.0], dtype=torch.float64),
        },
    ),
    "SanaTransformer2DModel": (
        {
            **_HEADS,
            **_IMAGE,
            "patch_size": 1,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
        },
    ),
    "LTXVideoTransformer3DModel": (
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "caption_channels": 12,
        },
        {
            "hidden_states": noise(1, 8, 4),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "encoder_attention_mask": torch.ones(1, 5),
            "num_frames": 2,
            "height": 2,
            "width": 2,
        },
    ),
    "WanTransformer3DModel": (
        {
            **_HEADS,
            "attention_head_dim": 12,
            "in_channels": 2,
            "out_channels": 2,
            "text_dim": 12,
            "freq_dim": 8,
            "ffn_dim": 20,
            "cross_attn_norm": True,
            "rope_max_seq_len": 32,
        },
        {
            "hidden_states": noise(1, 2, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
        },
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 2,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 2,
            "axes_dim_rope": (2, 2, 2),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 12,
        },
        {
            "hidden_states": noise(1, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        },
    ),
    "LatteTransformer3DModel": (
        {
            **_HEADS,
            **_IMAGE,
            "num_layers": 1,
            "caption_channels": 12,
            "cross_attention_dim": 16,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
        },
        {
            "hidden_states": noise(1, 2, 2, 8, 8),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "enable_temporal_attentions": True,
        },
    ),
    "QwenImageTransformer2DModel": (
        {
            **_HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 2, 2),
        },
        {
            "hidden_states": noise(1, 4, 4),
            "timestep": _step(),
            "encoder_hidden_states": noise(1, 5, 12),
            "encoder_hidden_states_mask": torch.ones(1, 5, dtype=torch.bool),
            "img_shapes": [(1, 2, 2)],
        },
    ),
}


def build(family: str) -> nn.Module:
    """A model of random weights in double precision."""
    torch.manual_seed(0)
    model: nn.Module = getattr(diffusers, family)(**FAMILIES[family][0])
    return model.double().eval()


def runner(family: str, model: nn.Module) -> Callable[[], Tensor]:
    """The model's answer to one input; all of them in a row if it has several."""
    inputs = FAMILIES[family][1]

    def run() -> Tensor:
        torch.manual_seed(0)  # an autoencoder samples
        return torch.cat([part.flatten() for part in _leaves(model(**inputs, return_dict=False))])

    return run


def _leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [leaf for output in outputs for leaf in _leaves(output)]
