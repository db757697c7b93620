"""One adapter walks the Llama-shaped families of transformers: same outputs, block by block."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import minifloat  # noqa: F401  registers with transformers
from minifloat.calibrate.line import tensors
from minifloat.calibrate.walk import walk
from minifloat.errors import UserError
from minifloat.export.native import save
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.llama import LlamaAdapter

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 12},
    "Gemma3Text": {"sliding_window": 8, "query_pre_attn_scalar": 12},
    "SmolLM3": {},
    "Phi3": {},
    "Olmo2": {},
    "Granite": {},
    "Cohere": {},
    "StableLm": {"partial_rotary_factor": 0.5},
    "Starcoder2": {},
    "OPT": {"ffn_dim": 80, "word_embed_proj_dim": 48, "dropout": 0.0},
    "GPTNeoX": {},
    "Falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": None},
    "Llama4Text": {"num_local_experts": 4, "intermediate_size_mlp": 80},
}


def tiny(family: str) -> nn.Module:
    """A model of random weights."""
    torch.manual_seed(0)
    settings = {k: v for k, v in (SMALL | FAMILIES[family]).items() if v is not None}
    config = getattr(transformers, f"{family}Config")(**settings)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval()


def batches() -> list[torch.Tensor]:
    return list(torch.randint(3, 96, (4, 24), generator=torch.Generator().manual_seed(1)).split(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_in_turn_are_the_model(family: str) -> None:
    model = tiny(family)
    adapter = LlamaAdapter()
    blocks = adapter.blocks(model)
    assert len(blocks) == 3
    expected: list[torch.Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        expected.append(output[0] if isinstance(output, tuple) else output)

    handle = list(blocks.values())[-1].register_forward_hook(keep)
    with torch.no_grad():
        for batch in batches():
            adapter.run(model, batch)
    handle.remove()
    for window in walk(model, adapter, batches(), {}, ()):
        found = [tensors(target)[0] for target in window.targets]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_saved_and_loaded(family: str, tmp_path: Any) -> None:
    model = tiny(family)
    with torch.no_grad():
        before = model(batches()[0]).logits
        method = build("zeroquant-fp", {"weight": "int8", "group_size": "32"})
        report = quantize(model, method, batches())
        after = model(batches()[0]).logits
    statuses = {row["name"]: row["status"] for row in report["ledger"]}
    assert set(statuses) == {name for name, _ in tiny(family).named_parameters()}
    assert "quantized" in statuses.values()
    error = float((after - before).norm() / before.norm())
    assert 0 < error < 0.1
    save(model, method.plan, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0]).logits, after)


def test_unknown_model_says_what_to_write() -> None:
    with pytest.raises(UserError, match="Write a class with blocks"):
        LlamaAdapter().blocks(nn.Linear(2, 2))
