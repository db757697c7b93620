"""The recipe of llama-tiny trains and resumes, and the committed checkpoint is as its card says."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer

from zoo import llama_tiny, train
from zoo.llama_tiny import Recipe

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "zoo" / "llama-tiny"
HELDOUT = ROOT / "src" / "minifloat" / "data" / "heldout.txt.gz"

MEASURED_PERPLEXITY = 33.822  # over the slice below, in fp32

SMALL = Recipe(
    vocab=320,
    hidden=32,
    intermediate=64,
    blocks=2,
    heads=2,
    kv_heads=1,
    context=32,
    steps=40,
    batch=4,
    peak_rate=1e-2,
    warmup=4,
    log_every=4,
    validate_every=8,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums split over threads may differ in the last bit between runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def heldout_text() -> str:
    """Return the held-out text of the package."""
    return gzip.decompress(HELDOUT.read_bytes()).decode("utf-8")


@pytest.fixture(scope="module")
def text() -> dict[str, str]:
    """Return a small piece of English; which one does not matter for learning at all."""
    piece = heldout_text()[:60_000]
    return {"train": piece[:50_000], "validation": piece[50_000:]}


def test_training_lowers_the_loss(tmp_path: Path, text: dict[str, str]) -> None:
    losses = llama_tiny.fit(text, tmp_path, SMALL)
    assert len(losses) == SMALL.steps
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_a_resumed_run_takes_the_steps_of_an_unstopped_one(
    tmp_path: Path, text: dict[str, str]
) -> None:
    recipe = replace(SMALL, steps=10)
    whole = llama_tiny.fit(text, tmp_path / "whole", recipe)
    before = llama_tiny.fit(text, tmp_path / "parts", recipe, stop=6)
    after = llama_tiny.fit(text, tmp_path / "parts", recipe, resume=True)

    assert whole == before + after
    lines = (tmp_path / "parts" / llama_tiny.LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6, 8, 10]
    whole_weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert whole_weights == (tmp_path / "parts" / "model.safetensors").read_bytes()


def test_resuming_with_another_recipe_names_the_difference(
    tmp_path: Path, text: dict[str, str]
) -> None:
    llama_tiny.fit(text, tmp_path, SMALL, stop=1)
    with pytest.raises(ValueError, match="another peak_rate, seed"):
        llama_tiny.fit(text, tmp_path, replace(SMALL, peak_rate=1.0, seed=1), resume=True)


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path, text: dict[str, str]) -> None:
    llama_tiny.fit(text, tmp_path, SMALL, stop=1)
    with pytest.raises(FileExistsError, match="pass --resume"):
        llama_tiny.fit(text, tmp_path, SMALL)


def test_an_epoch_visits_every_window_once() -> None:
    per_epoch = 9
    tokens = torch.arange(per_epoch * SMALL.batch * SMALL.context + 1 + SMALL.context)
    drawn = [llama_tiny.draw_batch(tokens, step, SMALL)[:, :-1] for step in range(per_epoch)]
    visited = torch.cat(drawn).flatten().sort().values
    assert torch.equal(visited, visited[0] + torch.arange(len(visited)))


def test_an_unknown_model_is_answered_with_the_close_names(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="did you mean llama-tiny"):
        train.main(["lama-tiny", "--out", str(tmp_path)])


def test_the_committed_checkpoint_has_the_perplexity_of_its_card() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    tokens = llama_tiny.encode(tokenizer, heldout_text()[:20_000])[: 2048 + 1]
    measured = llama_tiny.perplexity(model, tokens, model.config.max_position_embeddings)
    assert len(tokens) == 2048 + 1
    assert measured < 1.02 * MEASURED_PERPLEXITY


def test_the_committed_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 10_000_000
