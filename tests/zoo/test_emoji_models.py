"""The committed text-to-image models: they load as they lie, draw what is asked for, and their prompts
and judge are as their cards say. Nothing here needs a network or SmolLM2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from minifloat.models.pipeline import open_pipeline, sample
from minifloat.models.prompts import Prompts, read_prompts
from zoo import judge
from zoo.emoji_card import GUIDANCE, spread
from zoo.emoji_outliers import first_token
from zoo.judge import Labels, Score

ZOO = Path(__file__).resolve().parents[2] / "zoo"
DRAWN = 24
MODELS = {  # name: steps and guidance
    "unet-text": (6, GUIDANCE),
    "dit-text": (6, GUIDANCE),
    "unet-text-1step": (4, 1.0),
}
JUDGED = Score(group=0.945, style=0.956)  # of real held-out pictures


def held_out() -> tuple[torch.Tensor, Labels]:
    """The committed pictures and what they show."""
    stored = load_file(judge.HELD_OUT)
    return stored["images"], Labels(stored["groups"], stored["styles"])


def said_by(prompts: Prompts, count: int) -> tuple[Prompts, Labels]:
    """Some of a model's held-out prompts and what they ask for."""
    _, labels = held_out()
    places = torch.tensor(spread(len(prompts), len(labels.groups)))[spread(count, len(prompts))]
    return prompts.spread(count), Labels(labels.groups[places], labels.styles[places])


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> tuple[str, Any]:
    return request.param, open_pipeline(str(ZOO / request.param))


def test_the_judge_knows_held_out_pictures() -> None:
    found = judge.score(judge.load(), *held_out())
    assert found.group > JUDGED.group - 0.01
    assert found.style > JUDGED.style - 0.01


def test_a_picture_for_an_unseen_caption_is_taken_for_what_it_says(model: tuple[str, Any]) -> None:
    name, pipe = model
    steps, guidance = MODELS[name]
    asked, labels = said_by(read_prompts(ZOO / name / "heldout.safetensors"), DRAWN)
    drawn = sample(pipe, asked, seed=0, steps=steps, guidance=guidance, batch=DRAWN)
    found = judge.score(judge.load(), (255 * drawn).round().byte(), labels)
    shuffled = Labels(labels.groups.roll(5), labels.styles.roll(5))
    other = judge.score(judge.load(), (255 * drawn).round().byte(), shuffled)
    assert found.group > 2 * other.group
    again = sample(pipe, asked, seed=0, steps=steps, guidance=guidance, batch=DRAWN)
    assert torch.equal(drawn, again)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_token_is_massive_and_the_same_in_every_prompt(name: str) -> None:
    trained, unseen = (
        read_prompts(ZOO / name / f"{file}.safetensors") for file in ("prompts", "heldout")
    )
    assert not set(trained.captions) & set(unseen.captions)
    text = torch.cat([trained.values["prompt_embeds"], unseen.values["prompt_embeds"]])
    assert (text[:, 0] == unseen.values["negative_prompt_embeds"][0, 0]).all()
    _, ratio, later = first_token(text)
    assert ratio > 150
    assert later < 30
