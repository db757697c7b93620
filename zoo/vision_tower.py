"""The eye of `vlm`: a small SigLIP vision tower that is taught the words of captions.

Why this file exists: a vision-language model begins with a tower that sees already, and none is in
any package. SigLIP is taught with pairs of pictures and sentences; for four thousand pictures the
words of a caption are target enough: which of them are said of this picture (a hundred yes-or-no
questions), and which of twelve groups it belongs to.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from zoo import descent, judge, runs
from zoo.descent import Recipe, places, seeded
from zoo.emoji import GROUPS, NO_GROUP, SIZE, Emoji, Pictures
from zoo.noising import normed

RECIPE = Recipe(steps=700, batch=32, peak_rate=1e-3, weight_decay=0.05, validate_every=200)
PATCH = 8  # pixels a side: 16 patches
WIDTH = 128
SAID = 12  # captions that must have a word before it is asked for


def build() -> Any:
    """A freshly initialised SiglipVisionModel, 0.7 M parameters."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


def states(tower: Any, images: Tensor) -> Tensor:
    """What the language model will see, [n, patches, WIDTH], of images uint8 [n, 3, 32, 32]."""
    found: Tensor = tower(normed(images), output_hidden_states=True).hidden_states[-1]
    return found


class Reader(nn.Module):
    """A tower with one logit a word, of the mean over patches."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.tower = build()
        self.words = nn.Linear(WIDTH, words)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, words] of images uint8 [n, 3, 32, 32]."""
        said: Tensor = self.words(states(self.tower, images).mean(1))
        return said


def words_of(one: Emoji) -> set[str]:
    """The words of a caption."""
    return set(re.findall(r"[a-z0-9]+", one.caption))


def vocabulary(listed: list[Emoji]) -> list[str]:
    """The words that are said often enough, in alphabetical order."""
    counts = Counter(word for one in listed for word in words_of(one))
    return sorted(word for word, count in counts.items() if count >= SAID)


def targets(listed: list[Emoji], words: list[str]) -> Tensor:
    """The group as twelve yes or no, then the words, [n, 12 + words]."""
    rows = []
    for one in listed:
        said = words_of(one)
        rows.append([i == one.group for i in range(len(GROUPS))] + [word in said for word in words])
    return torch.tensor(rows).float()


def group_accuracy(reader: Reader, pictures: Pictures) -> float:
    """How often the likeliest group is the right one."""
    groups = torch.tensor([one.group for one in pictures.emoji])
    with torch.no_grad():
        guessed = reader(pictures.images)[:, : len(GROUPS)].argmax(1)
    known = groups != NO_GROUP
    return (guessed == groups)[known].float().mean().item()


def fit(
    pictures: Pictures,
    held: Pictures,
    out: Path,
    recipe: Recipe = RECIPE,
    resume: bool = False,
    stop: int | None = None,
) -> list[float]:
    """Train a tower in `out` and return the loss of every step; it is left in `out/tower`."""
    runs.begin(out, resume)
    torch.manual_seed(recipe.seed)
    words = vocabulary(pictures.emoji)
    asked, reader = targets(pictures.emoji, words), Reader(len(GROUPS) + len(words))

    def loss(step: int) -> Tensor:
        chosen = places(len(asked), step, recipe.batch, recipe.seed)
        images = judge.shifted(pictures.images[chosen], seeded(recipe.seed + 1, step))
        found = binary_cross_entropy_with_logits(reader(images), asked[chosen], reduction="sum")
        return found / recipe.batch

    return descent.train(
        out,
        recipe,
        reader,
        loss,
        watch=lambda: {"held_out_groups": round(group_accuracy(reader, held), 4)},
        export=lambda: reader.tower.save_pretrained(out / "tower"),
        resume=resume,
        stop=stop,
    )
