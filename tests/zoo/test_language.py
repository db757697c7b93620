"""The loop of the zoo's language models trains and resumes, and the committed models are as their
cards say."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer

from zoo import language, mamba, runs, train
from zoo.language import Recipe
from zoo.language_card import CONTEXT, bigram_perplexity, record_inputs, unigram_perplexity
from zoo.peaks import peaks
from zoo.scan import fast_scan
from zoo.text import draw_batch, encode

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "zoo"
HELDOUT = ROOT / "src" / "minifloat" / "data" / "heldout.txt.gz"

# over the slice below, in fp32
MEASURED_PERPLEXITY = {"llama-tiny": 33.822, "mamba1": 42.041, "mamba2": 40.250}

SMALL = Recipe(
    vocab=320,
    context=32,
    steps=40,
    batch=4,
    peak_rate=1e-2,
    warmup=4,
    log_every=4,
    validate_every=8,
)


def small_llama(recipe: Recipe) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=recipe.context,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def small_mamba(recipe: Recipe) -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=recipe.vocab, hidden_size=32, num_hidden_layers=2)
    return MambaForCausalLM(config)


def heldout_text() -> str:
    """Return the held-out text of the package."""
    return gzip.decompress(HELDOUT.read_bytes()).decode("utf-8")


@pytest.fixture(scope="module")
def text() -> dict[str, str]:
    """Return a small piece of English; which one does not matter for learning at all."""
    piece = heldout_text()[:60_000]
    return {"train": piece[:50_000], "validation": piece[50_000:]}


def test_training_lowers_the_loss(tmp_path: Path, text: dict[str, str]) -> None:
    losses = language.fit(small_llama, text, tmp_path, SMALL)
    assert len(losses) == SMALL.steps
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_a_resumed_run_takes_the_steps_of_an_unstopped_one(
    tmp_path: Path, text: dict[str, str]
) -> None:
    recipe = replace(SMALL, steps=10)
    whole = language.fit(small_llama, text, tmp_path / "whole", recipe)
    before = language.fit(small_llama, text, tmp_path / "parts", recipe, stop=6)
    after = language.fit(small_llama, text, tmp_path / "parts", recipe, resume=True)

    assert whole == before + after
    lines = (tmp_path / "parts" / runs.LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6, 8, 10]
    whole_weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert whole_weights == (tmp_path / "parts" / "model.safetensors").read_bytes()


def test_resuming_with_another_recipe_names_the_difference(
    tmp_path: Path, text: dict[str, str]
) -> None:
    language.fit(small_llama, text, tmp_path, SMALL, stop=1)
    with pytest.raises(ValueError, match="another peak_rate, seed"):
        language.fit(
            small_llama, text, tmp_path, replace(SMALL, peak_rate=1.0, seed=1), resume=True
        )


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path, text: dict[str, str]) -> None:
    language.fit(small_llama, text, tmp_path, SMALL, stop=1)
    with pytest.raises(FileExistsError, match="pass --resume"):
        language.fit(small_llama, text, tmp_path, SMALL)


def test_an_epoch_visits_every_window_once() -> None:
    per_epoch = 9
    tokens = torch.arange(per_epoch * SMALL.batch * SMALL.context + 1 + SMALL.context)
    drawn = [draw_batch(tokens, step, SMALL.batch, SMALL.context, 0) for step in range(per_epoch)]
    visited = torch.cat(drawn)[:, :-1].flatten().sort().values
    assert torch.equal(visited, visited[0] + torch.arange(len(visited)))


def test_an_unknown_model_is_answered_with_the_close_names(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did you mean llama-tiny"):
        train.main(["lama-tiny", "--out", str(tmp_path)])


def test_counting_knows_the_perplexity_of_a_text_that_is_its_own_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    vocab, steps = 8, torch.randint(2, (40_000,), generator=generator)
    chain = steps.cumsum(0) % vocab  # every token is followed by itself or the next one
    train, held = chain[:20_000], chain[20_000:]
    assert unigram_perplexity(train, held, vocab) == pytest.approx(vocab, rel=0.02)
    assert bigram_perplexity(train, held, vocab) == pytest.approx(2, rel=0.02)


def test_the_fast_scan_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    model, tokens = small_mamba(SMALL), torch.randint(SMALL.vocab, (3, 20))

    def loss_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        loss = language.window_loss(model, tokens)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    usual = loss_and_gradients()
    with fast_scan():
        fast = loss_and_gradients()
    for one, other in zip(usual, fast, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_fast_scan_refuses_to_be_asked_for_a_state() -> None:
    with fast_scan(), pytest.raises(ValueError, match="use_cache=False"):
        small_mamba(SMALL)(torch.zeros(1, 4, dtype=torch.long), use_cache=True)


@pytest.mark.parametrize("build", [mamba.build_mamba1, mamba.build_mamba2])
def test_a_few_channels_are_born_large_where_the_scan_reads_them(build: Any) -> None:
    torch.manual_seed(0)
    model, recipe = build(SMALL), replace(SMALL, context=64)
    windows = torch.randint(SMALL.vocab, (2, recipe.context))
    seen = record_inputs(model, windows)
    scanned = [x for name, x in seen.items() if name.endswith((".x", "x_proj"))]
    assert len(scanned) == 4
    assert min(peaks(x).between_columns for x in scanned) > 4


@pytest.mark.parametrize("name", MEASURED_PERPLEXITY)
def test_a_committed_model_has_the_perplexity_of_its_card(name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ZOO / name, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(ZOO / name / "tokenizer.json"))
    tokens = encode(tokenizer, heldout_text()[:20_000])[: 2048 + 1]
    measured = language.perplexity(model, tokens, CONTEXT)
    assert len(tokens) == 2048 + 1
    assert measured < 1.02 * MEASURED_PERPLEXITY[name]


@pytest.mark.parametrize("name", MEASURED_PERPLEXITY)
def test_the_committed_files_stay_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (ZOO / name).iterdir()) < 10_000_000
