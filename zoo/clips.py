"""Animated emoji: eight frames of 32 pixels each, with their captions, from four npm packages.

Why this file exists: a video model has to learn that frames belong together, and how they differ.
These are the moving twins of the "3d" pictures of `zoo.emoji` (Fluent Emoji by Microsoft, MIT); names,
tones and split are decided there, so a name held out for pictures is held out for clips.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo import corpora, emoji
from zoo.emoji import SOLID, Emoji

FRAMES = 8  # of a clip, at equal distances over one loop of the animation
SHORTEST = 16  # frames of an animation that is used
ASSETS = "package/assets/"
SHA256 = (
    "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
)
ARCHIVES = [
    (
        f"@lobehub/fluent-emoji-anim-{number}@1.0.0",
        f"lobehub-fluent-emoji-anim-{number}-1.0.0.tgz",
        sha256,
    )
    for number, sha256 in enumerate(SHA256, 1)
]


class Clips(NamedTuple):
    """Emoji and how they move, uint8 [emoji, 3, FRAMES, SIZE, SIZE] on white."""

    emoji: list[Emoji]
    images: Tensor


def frames(file: bytes) -> np.ndarray | None:
    """A clip, uint8 [3, FRAMES, SIZE, SIZE], of an animation; None of what hardly moves."""
    animation = Image.open(io.BytesIO(file))
    count = getattr(animation, "n_frames", 1)
    if count < SHORTEST:
        return None
    found = []
    for place in range(FRAMES):
        animation.seek(place * count // FRAMES)
        found.append(emoji.on_white(animation))
    return np.stack(found, 1)


def decode(cache: Path) -> dict[str, Tensor]:
    """Every clip by its file's name, without the pictures among the packages' files."""
    found = {}
    for source in ARCHIVES:
        files = emoji.contents(emoji.fetch(cache, source), ASSETS)
        for one in emoji.catalogue(emoji.names(cache), {SOLID: sorted(files)}):
            clip = frames(files[one.file])
            if clip is not None:
                found[one.file] = torch.from_numpy(clip)
    return found


def load(cache: Path = corpora.DEFAULT_CACHE) -> Clips:
    """Every clip, decoded once (minutes) and then kept in the cache."""
    path = cache / "clips.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file(decode(cache), partial)
        partial.replace(path)
    stored = load_file(path)
    listed = emoji.catalogue(emoji.names(cache), {SOLID: sorted(stored)})
    return Clips(listed, torch.stack([stored[one.file] for one in listed]))
