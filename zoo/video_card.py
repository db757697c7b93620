"""The scores and the picture of dit-video's card.

Why this file exists: clips are judged frame by frame, as the zoo's pictures are, and by their motion:
how much neighbouring frames differ, and how much more two frames of different clips do. A model that
drew each frame by itself would have frames as far apart as clips, one that copies a frame no motion.

    python -m zoo.video_card zoo/dit-video
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from minifloat.models.pipeline import open_pipeline
from zoo import captioned, clips, corpora, emoji, judge, prompts
from zoo.clips import FRAMES, Clips
from zoo.emoji_card import GUIDANCE, draw, keep, others, print_scores, sheet, spread
from zoo.judge import Labels

STEPS = 10
KEPT = 16, 24  # committed prompts, that calibrate and that are judged
SHOWN = 12


def framed(strips: Tensor) -> Tensor:
    """Strips of film [n, 3, side, FRAMES * side] as clips [n, FRAMES, 3, side, side]."""
    return strips.unflatten(3, (FRAMES, -1)).permute(0, 3, 1, 2, 4)


def framed_real(moving: Clips) -> Tensor:
    """Clips in the same order of axes."""
    return moving.images.movedim(1, 2)


def repeated(said: Labels) -> Labels:
    """What every frame of clips should show."""
    return Labels(*(own.repeat_interleave(FRAMES) for own in said))


def motion(frames: Tensor) -> tuple[float, float]:
    """How far neighbouring frames of clips, as `framed`, and frames of two clips are apart, 0..255."""
    shown = frames.float()
    neighbours = (shown[:, 1:] - shown[:, :-1]).abs().mean().item()
    return neighbours, (shown - shown.roll(1, 0)).abs().mean().item()


def part(moving: Clips, held_out: bool) -> Clips:
    """The held-out clips, or the others."""
    places = [i for i, one in enumerate(moving.emoji) if emoji.is_held_out(one.name) == held_out]
    return Clips([moving.emoji[i] for i in places], moving.images[places])


def main() -> None:
    """Print the scores of a model, draw its picture and write its committed prompts."""
    parser = argparse.ArgumentParser(prog="python -m zoo.video_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of model_index.json")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    parser.add_argument("--text-model", help="folder or GGUF of SmolLM2 (default: from PyPI)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe, moving = open_pipeline(str(options.folder)), clips.load(options.cache)
    read = captioned.words(emoji.load(options.cache), options)
    train, held = (part(moving, held_out=side) for side in (False, True))
    asked = [
        prompts.pick(read, [read.captions.index(one.caption) for one in own.emoji])
        for own in (train, held)
    ]
    keep(options.folder, pipe, *asked, *KEPT)
    places = spread(KEPT[1], len(held.emoji))
    request = prompts.for_pipeline(prompts.pick(asked[1], places), pipe)
    drawn = framed(draw(pipe, request, STEPS, GUIDANCE))
    real, said = framed_real(held), judge.labels(held.emoji)
    rows = [row for i in spread(SHOWN, len(places)) for row in (drawn[i], real[places[i]])]
    sheet(rows).save(options.folder / "samples.png")
    print("- " + "; ".join(held.emoji[places[i]].caption for i in spread(SHOWN, len(places))))
    own = repeated(Labels(*(each[places] for each in said)))
    flat = drawn.flatten(0, 1)
    scores = {
        "real frames, held out": (real.flatten(0, 1), repeated(said)),
        "real frames of the clips drawn": (real[places].flatten(0, 1), own),
        "frames of samples": (flat, own),
        "the same, captions shuffled": (flat, others(own)),
    }
    print_scores(judge.load(), scores, real.flatten(0, 1))
    for name, frames in (("real", real[places]), ("samples", drawn)):
        print("{}: neighbouring frames {:.1f} apart, clips {:.1f}".format(name, *motion(frames)))


if __name__ == "__main__":
    main()
