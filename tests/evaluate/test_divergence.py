"""Divergence from the full-precision model, and the report's rows, on the small model."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from minifloat.errors import UserError
from minifloat.evaluate.compare import compare
from minifloat.evaluate.divergence import divergence
from minifloat.evaluate.harness import tasks
from minifloat.evaluate.perplexity import perplexity

ZOO = Path(__file__).parents[2] / "zoo" / "llama-tiny"


def noisy(model: nn.Module, size: float) -> nn.Module:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(size * weight.std() * noise if weight.dim() > 1 else 0)
    return other


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 2048, (203,), generator=torch.Generator().manual_seed(0))


def test_nothing_lies_between_a_model_and_itself(model: nn.Module, tokens: Tensor) -> None:
    found = divergence(model, model, tokens, window=50)
    assert (found.kl, found.kl_error, found.top1, found.top1_error) == (0, 0, 1, 0)
    assert found.tokens == 202


def test_more_noise_is_further_away(model: nn.Module, tokens: Tensor) -> None:
    near = divergence(model, noisy(model, 0.02), tokens, window=50)
    far = divergence(model, noisy(model, 0.3), tokens, window=50)
    assert 0 < near.kl < far.kl
    assert 1 >= near.top1 > far.top1
    assert far.kl_error > 0
    assert far.top1_error > 0


def test_equals_the_definition(model: nn.Module, tokens: Tensor) -> None:
    other = noisy(model, 0.2)
    text = tokens[:101]
    with torch.no_grad():
        p = model(input_ids=text[None, :-1]).logits[0].double().log_softmax(-1)
        q = other(input_ids=text[None, :-1]).logits[0].double().log_softmax(-1)
    found = divergence(model, other, text, window=100)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert math.isnan(found.kl_error)


def test_compare_makes_one_pass_over_each_model(model: nn.Module, tokens: Tensor) -> None:
    other = noisy(model, 0.2)
    calls = {"reference": 0, "model": 0}

    def count(name: str) -> None:
        calls[name] += 1

    hooks = [
        model.register_forward_hook(lambda *_: count("reference")),
        other.register_forward_hook(lambda *_: count("model")),
    ]
    rows = compare(model, other, tokens, window=50, batch=2)
    for hook in hooks:
        hook.remove()
    assert calls == {"reference": 3, "model": 3}
    before = perplexity(model, tokens, window=50)
    after = perplexity(other, tokens, window=50)
    apart = divergence(model, other, tokens, window=50)
    assert [list(row.values()) for row in rows] == [
        ["perplexity", *(pytest.approx(x, rel=1e-4) for x in (before.value, before.error))]
        + [pytest.approx(x, rel=1e-4) for x in (after.value, after.error)],
        ["KL divergence", 0.0, None, apart.kl, apart.kl_error],
        ["top-1 agreement", 1.0, None, apart.top1, apart.top1_error],
    ]
    assert list(rows[0]) == [
        "name",
        "full_precision",
        "full_precision_error",
        "quantized",
        "quantized_error",
    ]


def test_compare_has_no_nan(model: nn.Module, tokens: Tensor) -> None:
    for row in compare(model, model, tokens[:30], window=50):
        assert row["full_precision_error"] is None
        assert row["quantized_error"] is None


def test_vocabularies_must_agree(model: nn.Module, tokens: Tensor) -> None:
    other = copy.deepcopy(model)
    other.lm_head = nn.Linear(256, 100, bias=False)
    with pytest.raises(UserError, match="2048 and 100"):
        divergence(model, other, tokens, window=50)


def test_harness_absent(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'minifloat\[tasks\]'"):
        tasks(model, None, ["arc_easy"])
