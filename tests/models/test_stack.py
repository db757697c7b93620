"""What is not known by name gets no seams: caution in the reader of blocks, where tables would guess."""

from typing import Any

import pytest
import torch
from torch import nn

from minifloat.models.attention import partners
from minifloat.models.llama import LlamaAdapter
from minifloat.models.slots import gain_offset, subtracts_mean
from tests.models import tiny_lm

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn


def found(model: nn.Module) -> set[tuple[str, str]]:
    return {(seam.kind, seam.name) for seam in LlamaAdapter().seams(model)}


def test_a_stranger_in_attention_takes_its_seams_and_those_that_read_it() -> None:
    model = tiny_lm.build("Llama")
    whole = found(model)
    model.get_submodule("model.layers.0.self_attn").add_module("lora", nn.Linear(4, 4))
    lost = {(kind, name.removeprefix("model.")) for kind, name in whole - found(model)}
    assert lost == {
        ("value", "layers.0.self_attn"),
        ("query", "layers.0.self_attn"),
        ("norm", "layers.0.input_layernorm"),
        ("norm", "layers.0.post_attention_layernorm"),
        ("residual", "model"),
    }


def test_a_stranger_in_the_block_or_the_decoder() -> None:
    model = tiny_lm.build("Llama")
    whole = found(model)
    model.get_submodule("model").add_module("projection", nn.Linear(4, 4))
    assert whole - found(model) == {("residual", "model")}
    model.get_submodule("model.layers.1").add_module("adapter", nn.Linear(4, 4))
    lost = whole - found(model)
    assert ("norm", "model.layers.1.input_layernorm") in lost
    assert ("norm", "model.layers.0.input_layernorm") not in lost
    assert ("value", "model.layers.1.self_attn") not in lost


@pytest.mark.parametrize(
    ("family", "change", "lost"),
    [
        ("Olmo", {"clip_qkv": 4.0}, {"value", "query"}),  # a clamp follows the rows
        ("Bloom", {"apply_residual_connection_post_layernorm": True}, {"residual"}),
    ],
)
def test_settings_that_move_things(family: str, change: dict[str, Any], lost: set[str]) -> None:
    model = tiny_lm.build(family)
    before = {kind for kind, _ in found(model)}
    for name, value in change.items():
        for module in model.modules():
            if hasattr(module, "config"):
                setattr(module.config, name, value)
    assert lost <= before
    assert not lost & {kind for kind, _ in found(model)}


@pytest.mark.parametrize(
    ("family", "pairs"),
    [
        ("Llama", (4, 5, 6, 7, 0, 1, 2, 3)),  # halves
        ("Cohere", (1, 0, 3, 2, 5, 4, 7, 6)),  # neighbours
        ("Phi", (2, 3, 0, 1, 4, 5, 6, 7)),  # halves of the first half
        ("GPTJ", (1, 0, 3, 2, 4, 5, 6, 7)),
        ("GptOss", (4, 5, 6, 7, 0, 1, 2, 3)),
        ("GPT2", tuple(range(8))),  # learned positions
    ],
)
def test_rotary_pairs_are_asked_from_the_model_s_file(family: str, pairs: tuple[int, ...]) -> None:
    model: Any = tiny_lm.build(family)
    block = next(iter(LlamaAdapter().blocks(model).values()))
    attention = next(m for n, m in block.named_children() if "attn" in n and "norm" not in n)
    assert partners(attention, 8, model.config) == pairs


@pytest.mark.parametrize(
    ("family", "offset", "centred"),
    [("Llama", 0, False), ("Gemma", 1, False), ("Nemotron", 1, True), ("StableLm", 0, True)],
)
def test_norms_are_asked_what_they_do(family: str, offset: int, centred: bool) -> None:
    norm = tiny_lm.build(family).get_submodule("model.norm")
    with torch.no_grad():
        norm.get_parameter("weight").uniform_()
    assert gain_offset(norm) == offset
    assert subtracts_mean(norm, 32) is centred
