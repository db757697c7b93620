"""The KV cache in few bits under transformers: generation sees what is kept, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from minifloat import QuantizedCache
from minifloat.errors import UserError
from minifloat.kernels import native
from minifloat.kernels.states import States
from minifloat.layers import QLinear
from minifloat.qtensor import encode, fake_quantize
from minifloat.spec import FP4_G128, FP8_TOKEN, INT8_TOKEN, UINT4_TOKEN, LayerSpec, QuantSpec
from tests.models.tiny_lm import build

PROMPT = torch.tensor([[5, 9, 11, 4, 33, 60, 7, 12, 3, 8, 21]])
FAMILIES = ["Llama", "Mistral", "Qwen3", "DeepseekV3"]


def rounded(spec: QuantSpec) -> Cache:
    """A cache of transformers whose keys and values are on their grid: the oracle."""

    class Rounded(DynamicLayer):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
            on_grid = [fake_quantize(x, spec) for x in (key_states, value_states)]
            return super().update(*on_grid)

    return Cache(layer_class_to_replicate=Rounded)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def logits(model: Any, tokens: Tensor, cache: Any, sizes: list[int]) -> Tensor:
    """Of a text that comes in pieces."""
    with torch.no_grad():
        pieces = tokens.split(sizes, 1)
        found = [model(piece, past_key_values=cache, use_cache=True).logits for piece in pieces]
    return torch.cat(found, 1)


def test_logits_are_those_of_keys_and_values_on_their_grid(model: Any) -> None:
    expected = logits(model, PROMPT, rounded(UINT4_TOKEN), [11])
    for implementation in (model.config._attn_implementation, "minifloat"):
        model.set_attn_implementation(implementation)
        for sizes in ([11], [1] * 11, [6, 1, 4]):
            found = logits(model, PROMPT, QuantizedCache(model.config), sizes)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    plain = logits(model, PROMPT, None, [11])
    assert (plain - expected).abs().max() > 1e-3


def test_batches_beams_and_look_ups_generate_what_the_oracle_does() -> None:
    """Left padding, reordered rows (beams) and tokens that are taken back (prompt look-up)."""
    model: Any = build("Llama")
    tokens = torch.cat([PROMPT, PROMPT.flip(1)])
    tokens[1, :4] = 0
    given = {"attention_mask": (tokens != 0).long(), "max_new_tokens": 6, "do_sample": False}
    ways = ({}, {"num_beams": 3})
    for implementation in ("sdpa", "minifloat"):
        model.set_attn_implementation(implementation)
        for way in ways:
            found = model.generate(
                tokens, past_key_values=QuantizedCache(model.config), **given, **way
            )
            expected = model.generate(tokens, past_key_values=rounded(UINT4_TOKEN), **given, **way)
            assert torch.equal(found, expected)
        once = {"max_new_tokens": 6, "do_sample": False}
        looked_up = model.generate(
            PROMPT, past_key_values=QuantizedCache(model.config), prompt_lookup_num_tokens=2, **once
        )
        plain = model.generate(PROMPT, past_key_values=QuantizedCache(model.config), **once)
        assert torch.equal(looked_up, plain)


def test_a_fixed_capacity_keeps_the_same_and_its_step_is_compiled_whole() -> None:
    model: Any = build("Llama")
    model.set_attn_implementation("minifloat")
    text = torch.cat([PROMPT, PROMPT.flip(1)], 1)
    sizes = [11, 6, 1, 1, 1, 1, 1]
    expected = logits(model, text, QuantizedCache(model.config), sizes)
    cache = QuantizedCache(model.config, capacity=30)
    assert cache.is_compileable
    pieces = [logits(model, text[:, :17], cache, sizes[:2])]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model, fullgraph=True, backend="aot_eager")
    pieces.append(logits(step, text[:, 17:], cache, sizes[2:]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-5, atol=1e-6)
    assert int(cache.get_seq_length()) == 22
    cache.crop(-5)
    again = logits(model, text[:, 17:], cache, [5])
    torch.testing.assert_close(again, expected[:, 17:], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="room for 30 tokens"):
        logits(model, text, cache, [22])
    logits(step, text[:, :8], cache, [1] * 8)
    kept = [layer.keys.held.codes.clone() for layer in cache.layers]
    with pytest.raises(UserError, match="room for 30 tokens"):
        logits(step, text[:, :1], cache, [1])
    for layer, codes in zip(cache.layers, kept, strict=True):
        assert torch.equal(layer.keys.held.codes, codes)


def test_generate_takes_a_fixed_capacity() -> None:
    """With left padding, and much more room than tokens."""
    model: Any = build("Llama")
    model.set_attn_implementation("minifloat")
    tokens = torch.cat([PROMPT, PROMPT.flip(1)])
    tokens[1, :4] = 0
    given = {"attention_mask": (tokens != 0).long(), "max_new_tokens": 6, "do_sample": False}
    expected = model.generate(tokens, past_key_values=QuantizedCache(model.config), **given)
    for capacity in (17, 400):
        cache = QuantizedCache(model.config, capacity=capacity)
        assert torch.equal(model.generate(tokens, past_key_values=cache, **given), expected)


def test_a_packed_model_generates_with_it_and_holds_few_bytes() -> None:
    model: Any = build("Llama")
    for path, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            q = encode(module.weight.detach(), FP4_G128)
            model.model.set_submodule(
                path, QLinear.pack(q, LayerSpec(FP4_G128), None, torch.float32)
            )
    cache = QuantizedCache(model.config, "uint4-token", "int8-token")
    found = model.generate(PROMPT, past_key_values=cache, max_new_tokens=5, do_sample=False)
    tokens = found.shape[1] - 1  # the newest has not been read
    # 2 layers, 2 heads of 8 features: 4 bits, fp16 and a byte; 8 bits and fp32
    assert cache.nbytes == tokens * 2 * 2 * ((4 + 2 + 1) + (8 + 4))
    cache.reset()
    assert cache.nbytes == cache.get_seq_length() == 0


def test_a_few_tokens_attend_to_codes_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As each would alone; a prompt that comes at once decodes the layer."""
    if native.library() is None:
        pytest.skip("minifloat was installed without a C compiler, and the reference decodes")
    model: Any = build("Llama")
    model.set_attn_implementation("minifloat")
    decoded = []
    whole = States.decoded
    monkeypatch.setattr(
        States, "decoded", lambda self, dtype: decoded.append(self.tokens) or whole(self, dtype)
    )
    mask = torch.tensor([[0, 0] + [1] * 9, [1] * 11])
    tokens = torch.cat([PROMPT, PROMPT.flip(1)])
    found = []
    for sizes in ([3, 8], [3] + [1] * 8):
        cache, seen = QuantizedCache(model.config, INT8_TOKEN), 0
        for piece in tokens.split(sizes, 1):
            seen += piece.shape[1]
            with torch.no_grad():
                last = model(piece, past_key_values=cache, attention_mask=mask[:, :seen])
        found.append(last.logits[:, -1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    assert not decoded
    logits(model, PROMPT, QuantizedCache(model.config), [11])
    assert set(decoded) == {11}


def test_layers_without_keys_keep_their_states() -> None:
    model: Any = build("Bamba")
    cache = QuantizedCache(model.config, FP8_TOKEN)
    kinds = [type(layer).__name__ for layer in cache.layers]
    assert kinds == ["LinearAttentionLayer", "QuantizedLayer"]
    logits(model, PROMPT, cache, [11])
    assert cache.nbytes == 11 * 2 * 2 * (8 + 4)


def test_what_it_cannot_do_is_said() -> None:
    config = build("Llama").config
    with pytest.raises(
        UserError, match="unknown preset 'uint4-tokens'; did you mean 'uint4-token'"
    ):
        QuantizedCache(config, "uint4-tokens")
    with pytest.raises(UserError, match="no scale of their own"):
        QuantizedCache(config, INT8_TOKEN, "nvfp4")
    capped: Any = build("Gemma2")
    capped.set_attn_implementation("minifloat")
    with pytest.raises(UserError, match="attention asks for softcap"):
        logits(capped, PROMPT, QuantizedCache(capped.config), [11])
