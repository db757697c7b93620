"""Tiny random language models of real classes of transformers, with gains and weights that matter."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MLA = {
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": 4,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Ministral": {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "SmolLM3": {},
    "Phi": {"partial_rotary_factor": 0.5},
    "Phi3": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": {},
    "Granite": {},
    "Cohere": {},
    "Cohere2": {},
    "Glm": {"partial_rotary_factor": 0.5},
    "Glm4": {"partial_rotary_factor": 0.5},
    "StableLm": {"partial_rotary_factor": 0.5},
    "Starcoder2": {},
    "Nemotron": {"partial_rotary_factor": 0.5},
    "Exaone4": {"sliding_window": 8},
    "Helium": {},
    "SeedOss": {},
    "Ernie4_5": {},
    "Apertus": {},
    "Arcee": {},
    "OPT": {"ffn_dim": 40, "word_embed_proj_dim": 32, "dropout": 0.0},
    "GPTNeoX": {"rotary_pct": 0.5},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "GPTBigCode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "GPTJ": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "rotary_dim": 4},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
    "Mixtral": {"num_local_experts": 4, **_MOE},
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 24, **_MOE},
    "Qwen3Moe": {"num_experts": 4, **_MOE},
    "Olmoe": {"num_experts": 4, **_MOE},
    "GraniteMoe": {"num_local_experts": 4, **_MOE},
    "MiniMax": {"num_local_experts": 4, **_MOE},
    "DeepseekV2": {**_MLA, "q_lora_rank": None, "num_key_value_heads": 4},
    "DeepseekV3": {**_MLA, "q_lora_rank": 8, "num_key_value_heads": 4},
    "GptOss": {"num_local_experts": 4, "sliding_window": 8, **_MOE},
    "Mamba": {"state_size": 6, "time_step_rank": 4},
    "FalconMamba": {"state_size": 6, "time_step_rank": 4},
    "Mamba2": {"state_size": 6, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "Jamba": {
        "mamba_d_state": 6,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "Bamba": {"attn_layer_indices": [1], **_MAMBA2},
    "FalconH1": {"mamba_d_ssm": 64, **_MAMBA2},
    "Zamba2": {
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "mamba_d_state": 6,
        "mamba_headdim": 8,
        "chunk_size": 8,
        "num_hidden_layers": 3,
        "layer_types": ["mamba", "mamba", "hybrid"],
        "hybrid_layer_ids": [2],
        "use_mem_rope": True,
    },
    "NemotronH": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "num_hidden_layers": 3,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 6,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 24,
        **_MAMBA2,
    },
}


def build(family: str, **changes: Any) -> nn.Module:
    """A model of random weights in double precision; experts as plain loops, which know it."""
    torch.manual_seed(0)
    settings = {k: v for k, v in (SMALL | FAMILIES[family] | changes).items() if v is not None}
    config = getattr(transformers, f"{family}Config")(**settings)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(
        config, experts_implementation="eager"
    )
    return model.double().eval()


def runner(family: str, model: nn.Module) -> Callable[[], Tensor]:
    """The model's answer to one batch of tokens."""
    ids = torch.randint(3, 60, (1, 10), generator=torch.Generator().manual_seed(1))
    return lambda: model(input_ids=ids, use_cache=False).logits
