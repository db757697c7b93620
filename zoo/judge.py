"""Judge pictures of emoji: which of twelve groups, which of two styles, and a Frechet distance.

Why this file exists: a text-to-image model has learned something if pictures for captions that nobody
trained on are taken for what the captions say, by a classifier that knows neither the model nor the
captions. It is a small convolutional network, trained on the training pictures alone. Its features
also give a Frechet distance (Heusel et al., arXiv:1706.08500, equation 6, with this network in place
of Inception): no FID, and only comparable with itself and its floor.

    python -m zoo.judge            train it, write zoo/emoji/judge.safetensors, print its accuracy
"""

import argparse
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minifloat.evaluate.frechet import frechet
from zoo import corpora, emoji
from zoo.emoji import GROUPS, NO_GROUP, Emoji, Pictures

FILE = Path(__file__).resolve().parent / "emoji" / "judge.safetensors"
HELD_OUT = Path(__file__).resolve().parent / "emoji" / "heldout.safetensors"
STYLES = (emoji.FLAT, emoji.SOLID)
FEATURES = 64
STEPS, BATCH, RATE, SHIFT = 2000, 64, 2e-3, 3


class Judge(nn.Module):
    """Three convolutions, features that are their mean over the picture, and two answers."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.features = nn.Linear(2 * 128, FEATURES)
        self.group = nn.Linear(FEATURES, len(GROUPS))
        self.style = nn.Linear(FEATURES, len(STYLES))

    def describe(self, images: Tensor) -> Tensor:
        """Features [n, FEATURES] of images uint8 [n, 3, 32, 32]."""
        seen = self.trunk(images.float() / 127.5 - 1)
        out: Tensor = self.features(torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1))
        return out

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of groups [n, 12] and of styles [n, 2]."""
        found = self.describe(images).relu()
        return self.group(found), self.style(found)


class Labels(NamedTuple):
    """What the captions say; a group is NO_GROUP where a caption belongs to none."""

    groups: Tensor
    styles: Tensor


def labels(listed: list[Emoji]) -> Labels:
    """The labels of emoji."""
    groups = [one.group for one in listed]
    return Labels(torch.tensor(groups), torch.tensor([STYLES.index(o.style) for o in listed]))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by up to SHIFT pixels a side, white coming in from the edge."""
    padded = nn.functional.pad(images, (SHIFT,) * 4, value=255)
    y, x = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
    return padded[:, :, y : y + emoji.SIZE, x : x + emoji.SIZE]


def fit(pictures: Pictures, steps: int = STEPS) -> Judge:
    """Train a judge; groups are weighted so that none is a safe guess."""
    torch.manual_seed(0)
    judge, said = Judge().train(), labels(pictures.emoji)
    counts = said.groups[said.groups >= 0].bincount(minlength=len(GROUPS)).clamp(min=1)
    weight = counts.sum() / counts / len(counts)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.05)
    slope = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        places = torch.randint(len(pictures.images), (BATCH,), generator=generator)
        group, style = judge(shifted(pictures.images[places], generator))
        loss = cross_entropy(group, said.groups[places], weight.sqrt(), ignore_index=NO_GROUP)
        loss = loss + cross_entropy(style, said.styles[places])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slope.step()
    return judge.eval()


def load() -> Judge:
    """The committed judge."""
    judge = Judge()
    judge.load_state_dict(load_file(FILE))
    return judge.eval()


class Score(NamedTuple):
    """Parts of pictures that show what was asked for."""

    group: float  # of those whose caption belongs to a group
    style: float


@torch.inference_mode()
def score(judge: Judge, images: Tensor, asked: Labels) -> Score:
    """How often the judge takes images, uint8 [n, 3, 32, 32], for what was asked."""
    group, style = (logits.argmax(1) for logits in judge(images))
    known = asked.groups != NO_GROUP
    return Score(
        (group == asked.groups)[known].float().mean().item(),
        (style == asked.styles).float().mean().item(),
    )


@torch.inference_mode()
def distance(judge: Judge, images: Tensor, others: Tensor) -> float:
    """The Frechet distance of Gaussians through the judge's features of two sets of pictures."""
    return frechet(judge.describe(images), judge.describe(others))


def write_held_out(pictures: Pictures) -> None:
    """Commit what a test needs of the held-out pictures, and no more."""
    said = labels(pictures.emoji)
    images = pictures.images.contiguous()
    save_file({"images": images, "groups": said.groups, "styles": said.styles}, HELD_OUT)


def main() -> None:
    """Train the judge and write it and the held-out pictures."""
    parser = argparse.ArgumentParser(prog="python -m zoo.judge", description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = emoji.load(options.cache)
    train, held = (emoji.part(pictures, held_out=side) for side in (False, True))
    write_held_out(held)
    judge = fit(train)
    save_file(judge.state_dict(), FILE)
    for name, own in (("training", train), ("held-out", held)):
        found = score(judge, own.images, labels(own.emoji))
        print(f"{name} pictures: group {found.group:.3f}, style {found.style:.3f}")


if __name__ == "__main__":
    main()
