"""The split of the captions, the prompts and the loop that trains the zoo's models of images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from tests.zoo.tiny_makers import FRAMES, MAKERS, data, requests
from zoo import captioned, diffusion, emoji, noising, prompts, runs
from zoo.captioned import MASK, TEXT
from zoo.diffusion import Recipe

SMALL = Recipe(
    steps=12, batch=4, warmup=2, log_every=4, validate_every=8, checkpoint_seconds=1000.0
)
RECIPES = {kind: replace(SMALL, low=kind == "unet") for kind in MAKERS}


def entry(name: str, subcategory: str, image: str, tones: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry as emoji.json has them."""
    stem = image.removesuffix(".png")
    toned = {tone: {"image": f"{stem}-{tone.lower()}.png"} for tone in tones}
    return {"name": name, "subcategory": subcategory, "image": image, "skin_variations": toned}


ENTRIES = [
    entry("GREEN HEART", "heart", "1f49a.png"),
    entry("WAVING HAND SIGN", "hand-fingers-open", "1f44b.png", ("1F3FB", "1F3FF")),
    entry("MAN", "person", "1f468.png", ("1F3FB",)),
    entry("FAMILY: MAN, BOY", "family", "1f468-200d-1f466.png"),
    entry("COPYRIGHT SIGN", "other-symbol", "00a9-fe0f.png"),
]
FLAT = [
    name
    for e in ENTRIES
    for name in (e["image"], *(v["image"] for v in e["skin_variations"].values()))
]


def test_hands_keep_their_tones_and_people_do_not() -> None:
    found = emoji.catalogue(ENTRIES, {"flat": FLAT, "3d": ["1f49a.webp", "a9-fe0f.webp"]})
    assert [one.caption for one in found] == [
        "flat emoji: green heart",
        "flat emoji: waving hand sign",
        "flat emoji: waving hand sign, light skin tone",
        "flat emoji: waving hand sign, dark skin tone",
        "flat emoji: man",
        "flat emoji: copyright sign",
        "3d emoji: green heart",
        "3d emoji: copyright sign",
    ]


def test_no_caption_is_on_both_sides_whatever_its_style_and_tone() -> None:
    found = emoji.catalogue(ENTRIES, {"flat": FLAT, "3d": FLAT})
    sides = {True: set(), False: set()}
    for one in found:
        words = one.caption.split(": ", 1)[1].split(", ")[0]
        sides[emoji.is_held_out(one.name)].add(words)
    assert not sides[True] & sides[False]


def test_a_tenth_of_the_names_is_held_out() -> None:
    held = sum(emoji.is_held_out(f"thing {i}") for i in range(5000))
    assert 420 < held < 580  # four deviations


# --- prompts ------------------------------------------------------------------------------------


class Counting:
    """A causal model of one channel: a token's state is the sum of all ids up to it."""

    device = "cpu"

    def __call__(self, ids: Tensor, output_hidden_states: bool) -> Any:
        state = 8.0 * ids.cumsum(1)[..., None].expand(-1, -1, prompts.WIDTH)
        return type("Output", (), {"hidden_states": [state] * (prompts.BLOCKS + 1)})


def letters(caption: str, add_special_tokens: bool) -> Any:
    return type("Encoded", (), {"input_ids": [ord(letter) for letter in caption]})


def test_every_prompt_begins_with_the_same_token_and_ends_in_zeros(tmp_path: Path) -> None:
    first = prompts.states(Counting(), letters, "")
    rest = [prompts.states(Counting(), letters, c)[1:] for c in ("ab", "a" * 40)]
    made = prompts.padded(["ab", "a" * 40], first, rest)
    assert made.mask.sum(1).tolist() == [3, prompts.TOKENS]
    assert torch.equal(made.text[0, 0], made.text[1, 0])
    assert made.text[0, :4, 0].tolist() == [0, ord("a"), ord("a") + ord("b"), 0]
    prompts.write(tmp_path / "made.safetensors", made)
    again = prompts.read(tmp_path / "made.safetensors")
    assert again.captions == made.captions
    assert torch.equal(again.text, made.text) and torch.equal(again.mask, made.mask)


# --- the loop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_resumed_run_takes_the_steps_of_an_unstopped_one(kind: str, tmp_path: Path) -> None:
    maker, recipe = MAKERS[kind], RECIPES[kind]
    train, held = (data(count, seed, kind) for count, seed in ((16, 0), (4, 1)))
    whole = diffusion.fit(maker, train, held, tmp_path / "whole", recipe)
    before = diffusion.fit(maker, train, held, tmp_path / "parts", recipe, stop=6)
    after = diffusion.fit(maker, train, held, tmp_path / "parts", recipe, resume=True)

    assert whole == before + after
    lines = (tmp_path / "parts" / runs.LOG).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 6, 8, 12]
    found = [tmp_path / name / runs.CHECKPOINT for name in ("whole", "parts")]
    weights = [weights_of(path) for path in found]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def weights_of(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_stop_leaves_a_pipeline_that_draws(kind: str, tmp_path: Path) -> None:
    from minifloat.models.pipeline import open_pipeline, sample

    maker, recipe = MAKERS[kind], RECIPES[kind]
    train, held = (data(count, seed, kind) for count, seed in ((8, 0), (4, 1)))
    diffusion.fit(maker, train, held, tmp_path, recipe, stop=1)
    pipe = open_pipeline(str(tmp_path / diffusion.PIPELINE))
    asked = requests(pipe, kind)
    drawn = [sample(pipe, asked, seed=0, steps=2, guidance=2.0) for _ in range(2)]
    assert drawn[0].shape == (2, 3, 32, 32 * FRAMES if kind == "video" else 32)
    assert torch.equal(*drawn)


def test_a_run_can_be_lengthened_until_its_rate_falls(tmp_path: Path) -> None:
    maker, recipe = MAKERS["dit"], SMALL
    train, held = data(8, 0), data(4, 1)
    diffusion.fit(maker, train, held, tmp_path, recipe, stop=8)
    longer = replace(recipe, steps=24)
    losses = diffusion.fit(maker, train, held, tmp_path, longer, resume=True, stop=10)
    assert len(losses) == 2
    diffusion.fit(maker, train, held, tmp_path, longer, resume=True, stop=19)
    with pytest.raises(ValueError, match="--steps 24"):
        diffusion.fit(maker, train, held, tmp_path, replace(recipe, steps=40), resume=True)


def test_resuming_with_another_recipe_names_the_difference(tmp_path: Path) -> None:
    maker, recipe = MAKERS["dit"], SMALL
    train, held = data(8, 0), data(4, 1)
    diffusion.fit(maker, train, held, tmp_path, recipe, stop=1)
    with pytest.raises(ValueError, match="another peak_rate, seed"):
        other = replace(recipe, peak_rate=1.0, seed=1)
        diffusion.fit(maker, train, held, tmp_path, other, resume=True)
    with pytest.raises(FileExistsError, match="pass --resume"):
        diffusion.fit(maker, train, held, tmp_path, recipe)


def test_an_epoch_shows_every_picture_once() -> None:
    own = data(16, 0)
    tagged = own._replace(
        images=torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand_as(own.images)
    )
    plan, seen = noising.scheduler(), []
    for step in range(4):
        batch = noising.draw(tagged, step, SMALL.batch, 0, 0.1, captioned.forget, noising.noised)
        # Clean pictures out of noisy ones and their velocity: x = sqrt(a) x_t - sqrt(1 - a) v.
        kept = plan.alphas_cumprod[batch.times][:, None, None, None]
        clean = kept.sqrt() * batch.noisy - (1 - kept).sqrt() * batch.velocity
        seen += ((clean.mean((1, 2, 3)) + 1) * 127.5).round().int().tolist()
    assert sorted(seen) == list(range(16))


@pytest.mark.parametrize("masked", [True, False])
def test_one_prompt_in_ten_loses_its_words(masked: bool) -> None:
    own = data(200, 0, "dit" if masked else "unet")
    rest = 200, 0, 0.1, captioned.forget, noising.noised
    batches = [noising.draw(own, step, *rest) for step in range(5)]
    worded = [batch.asked[TEXT][:, 1].abs().amax(1) > 0 for batch in batches]
    assert 60 < (~torch.cat(worded)).sum() < 140  # four deviations
    for batch, kept in zip(batches, worded, strict=True):
        assert (batch.asked[TEXT][:, 0] == 10).all()
        if masked:
            assert batch.asked[MASK][:, 0].all() and batch.asked[MASK][:, 1].equal(kept)
