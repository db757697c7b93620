"""Perplexity against a loop written by hand, on the committed small model."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from minifloat.errors import UserError
from minifloat.evaluate.perplexity import batches, perplexity

ZOO = Path(__file__).parents[2] / "zoo" / "llama-tiny"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(ZOO, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(1, 2048, (203,), generator=torch.Generator().manual_seed(0))


def by_hand(model: nn.Module, tokens: Tensor, window: int, stride: int) -> float:
    losses, done, end = [], 0, min(window, len(tokens) - 1)
    while done < len(tokens) - 1:
        begin = max(0, end - window)
        with torch.no_grad():
            logits = model(input_ids=tokens[None, begin:end]).logits[0].float()
        each = functional.cross_entropy(logits, tokens[begin + 1 : end + 1], reduction="none")
        losses += each[done - begin :].tolist()
        done, end = end, min(end + stride, len(tokens) - 1)
    assert len(losses) == len(tokens) - 1
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize(("window", "stride"), [(50, 50), (50, 17), (64, 9), (201, 201)])
def test_equals_the_loop(model: nn.Module, tokens: Tensor, window: int, stride: int) -> None:
    found = perplexity(model, tokens, window=window, stride=stride, batch=3)
    assert found.value == pytest.approx(by_hand(model, tokens, window, stride), rel=1e-5)
    assert found.tokens == 202
    assert found.error > 0


def test_batch_and_default_stride_do_not_matter(model: nn.Module, tokens: Tensor) -> None:
    one = perplexity(model, tokens, window=40, batch=1)
    many = perplexity(model, tokens, window=40, stride=40, batch=8)
    assert one.value == pytest.approx(many.value, rel=1e-5)
    assert one.error == pytest.approx(many.error, rel=1e-4)


def test_error_is_the_delta_method(model: nn.Module, tokens: Tensor) -> None:
    text = tokens[:201]  # 4 windows of equal size: the plain standard error of their means
    found = perplexity(model, text, window=50)
    parts = [perplexity(model, text[i * 50 : i * 50 + 51], window=50).value for i in range(4)]
    spread = torch.tensor(parts, dtype=torch.float64).log().std() / 2
    assert found.error == pytest.approx(found.value * float(spread), rel=1e-4)


def test_one_window_has_no_error(model: nn.Module, tokens: Tensor) -> None:
    found = perplexity(model, tokens[:20], window=50)
    assert found.tokens == 19
    assert math.isnan(found.error)


def test_every_target_is_scored_once() -> None:
    for total in range(2, 30):
        for window in range(1, 12):
            for stride in range(1, window + 1):
                seen: list[int] = []
                for block in batches(torch.arange(total), window, stride, 3):
                    assert torch.equal(block.inputs + 1, block.targets)
                    for row, scored in zip(block.targets, block.scored, strict=True):
                        assert scored > 0
                        seen += row[-scored:].tolist()
                assert seen == list(range(1, total))


def test_training_flags_come_back(model: nn.Module, tokens: Tensor) -> None:
    model.train()
    model.lm_head.eval()
    perplexity(model, tokens[:20])
    assert model.training
    assert not model.lm_head.training
    model.eval()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 0}, "window"),
        ({"batch": 0}, "batch"),
        ({"window": 8, "stride": 9}, "stride"),
        ({"stride": 0}, "stride"),
    ],
)
def test_mistakes(model: nn.Module, tokens: Tensor, change: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        perplexity(model, tokens, **change)


def test_texts_without_a_perplexity(model: nn.Module, tokens: Tensor) -> None:
    with pytest.raises(UserError, match="at least 2 tokens"):
        perplexity(model, tokens[:1])
    with pytest.raises(UserError, match="at least 2 tokens"):
        perplexity(model, tokens[None])
    with pytest.raises(UserError, match="at most 256 tokens"):
        perplexity(model, tokens.repeat(2), window=300)
