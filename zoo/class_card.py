"""The scores and the picture of unet-class's card.

Why this file exists: a class-conditional model has learned something if what it draws for a class is
taken for it by a judge that was trained apart.

    python -m zoo.class_card zoo/unet-class
"""

import argparse
from pathlib import Path

import torch

from minifloat.models.pipeline import open_pipeline
from minifloat.models.prompts import Prompts
from zoo import corpora, judge
from zoo.emoji_card import GUIDANCE, STEPS, draw, others, print_scores, sheet
from zoo.judge import STYLES, Labels
from zoo.unet_class import CLASS, CLASSES, load

EACH = 8  # pictures of a class


def main() -> None:
    """Print the scores of a model and draw its picture."""
    parser = argparse.ArgumentParser(prog="python -m zoo.class_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of model_index.json")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    options = parser.parse_args()
    options.device = "cpu"
    torch.set_num_threads(1)
    train, held = load(options)
    asked = torch.arange(len(CLASSES)).repeat_interleave(EACH)
    request = Prompts([CLASSES[i] for i in asked], {CLASS: asked.tolist()})
    drawn = draw(open_pipeline(str(options.folder)), request, STEPS, GUIDANCE)
    sheet(list(drawn.split(EACH))).save(options.folder / "samples.png")
    said, seen, unseen = (
        Labels(own // len(STYLES), own % len(STYLES))
        for own in (asked, train.asked[CLASS], held.asked[CLASS])
    )
    rows = {
        "real, held out": (held.images, unseen),
        "real, trained on": (train.images[::10], Labels(*(own[::10] for own in seen))),
        f"samples, {EACH} of each class": (drawn, said),
        "the same, classes shuffled": (drawn, others(said)),
    }
    print_scores(judge.load(), rows, held.images)


if __name__ == "__main__":
    main()
