"""What llama.cpp calls the tensors of a Llama, and in which order it wants the rows of q and k.

Source: the `gguf` package 0.19 (`tensor_mapping.py`) and llama.cpp's `convert_hf_to_gguf.py`.
"""

import re
from typing import Any

import torch
from torch import Tensor

_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE_BACK = {theirs: ours for ours, theirs in _WHOLE.items()}
_BLOCK_BACK = {theirs: ours for ours, theirs in _BLOCK.items()}


def theirs(name: str) -> str | None:
    """llama.cpp's name of a tensor of transformers' Llama, if it has one."""
    return _renamed(name, r"model\.layers\.(\d+)\.(.+)", "blk.{}.{}", _BLOCK, _WHOLE)


def ours(name: str) -> str | None:
    """transformers' name of a tensor of llama.cpp's Llama, if it has one."""
    pattern, form = r"blk\.(\d+)\.(.+)", "model.layers.{}.{}"
    return _renamed(name, pattern, form, _BLOCK_BACK, _WHOLE_BACK)


def _renamed(
    name: str, pattern: str, form: str, block: dict[str, str], whole: dict[str, str]
) -> str | None:
    module, _, suffix = name.rpartition(".")
    match = re.fullmatch(pattern, module)
    found = block.get(match[2]) if match else whole.get(module)
    if found is None or suffix not in ("weight", "bias"):
        return None
    return f"{form.format(match[1], found) if match else found}.{suffix}"


def row_order(module: str, rows: int, config: dict[str, Any]) -> Tensor:
    """Which row of ours is each row of llama.cpp's.

    It turns neighbouring pairs where transformers turns the two halves of a head, so that rows of q
    and k lie interleaved; all others stay.
    """
    leaf = module.rpartition(".")[2]
    order = torch.arange(rows)
    if leaf not in ("q_proj", "k_proj"):
        return order
    heads = config["num_attention_heads" if leaf == "q_proj" else "num_key_value_heads"]
    return order.reshape(heads, 2, -1).transpose(1, 2).reshape(-1)
