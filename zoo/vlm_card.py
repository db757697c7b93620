"""What the card of `vlm` states: answers about held-out emoji, outliers, a picture.

Why this file exists: every number in the card comes out of one command. An answer counts if it is the
right one to the letter; beside it stands the share of the commonest answer, which is what a model
reaches that cannot see.

    python -m zoo.vlm_card zoo/vlm
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minifloat.models.load import load_model
from zoo import corpora, emoji, vlm
from zoo.emoji import Pictures
from zoo.emoji_card import sheet, spread
from zoo.language_card import print_peaks
from zoo.noising import normed
from zoo.vlm import QUESTIONS

LENGTH, BATCH = 16, 64  # tokens of an answer at most; pictures at once
SHOWN, COLUMNS = 24, 12


class Count(NamedTuple):
    """Answers to one question."""

    asked: int
    right: float  # part of them
    words: float  # mean part of the right answer's words that are said
    commonest: float  # part to which the most frequent answer is the right one


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, images: Tensor, question: str) -> list[str]:
    """The likeliest answer, token by token, about images uint8 [n, 3, 32, 32]."""
    ids = torch.tensor([vlm.prompt(tokenizer.backend_tokenizer, question)])
    said = []
    for part in images.split(BATCH):
        tokens = model.generate(
            input_ids=ids.expand(len(part), -1),
            attention_mask=torch.ones(len(part), ids.shape[1], dtype=torch.long),
            pixel_values=normed(part).to(model.dtype),
            do_sample=False,
            max_new_tokens=LENGTH,
        )
        ends = tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
        said += [one.strip() for one in ends]
    return said


def named(said: str, right: str) -> float:
    """The part of the right answer's words that are said."""
    return len(set(said.split()) & set(right.split())) / len(set(right.split()))


def count(said: list[str], right: list[str]) -> Count:
    """How often answers are the right ones."""
    hits = [a == b for a, b in zip(said, right, strict=True)]
    words = [named(a, b) for a, b in zip(said, right, strict=True)]
    most = max(Counter(right).values())
    return Count(len(said), sum(hits) / len(hits), sum(words) / len(words), most / len(right))


def asked_of(pictures: Pictures, question: str) -> tuple[Tensor, list[str]]:
    """The pictures that a question is asked about, and the right answers."""
    known = [(i, vlm.answers(one).get(question)) for i, one in enumerate(pictures.emoji)]
    places = [i for i, said in known if said is not None]
    return pictures.images[places], [said for _, said in known if said is not None]


def print_answers(model: Any, tokenizer: Any, held: Pictures) -> None:
    """Print a Markdown table of counts, one row a question."""
    print("| question | pictures | right | words said | commonest answer |\n|---|---|---|---|---|")
    for question in QUESTIONS:
        images, right = asked_of(held, question)
        found = count(answer(model, tokenizer, images, question), right)
        figures = " | ".join(f"{x:.3f}" for x in found[1:])
        print(f"| {question} | {found.asked} | {figures} |")


def print_picture(model: Any, tokenizer: Any, held: Pictures, path: Path) -> None:
    """Show every n-th held-out picture and print what is said of it, and what it is."""
    places = spread(SHOWN, len(held.emoji))
    images = held.images[places]
    sheet(list(images.split(COLUMNS))).save(path)
    said = [answer(model, tokenizer, images, question) for question in QUESTIONS]
    print()
    for row, place in enumerate(places):
        own = ", ".join(answers[row] for answers in said)
        print(f"{row + 1}. {own} *({held.emoji[place].caption})*")


def inputs_of(model: Any, tokenizer: Any, held: Pictures) -> dict[str, Tensor]:
    """The input [tokens, channels] of every linear layer while it reads a picture, question, answer."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs: seen.update({name: inputs[0].flatten(0, -2)})

    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(keep(name)) for name, m in layers]
    chosen = vlm.examples(held.emoji)[::40]
    images = held.images[[one.place for one in chosen]]
    with torch.inference_mode():
        model(**vlm.batch_of(tokenizer.backend_tokenizer, chosen, images), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def towers(matrices: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Matrices by the tower they belong to."""
    found: dict[str, dict[str, Tensor]] = {"vision": {}, "projector": {}, "language": {}}
    for name, matrix in matrices.items():
        tower = next((t for t in ("vision", "projector") if t in name), "language")
        found[tower][name] = matrix
    return found


def main() -> None:
    """Print what the card of a finished model states, and draw its picture."""
    parser = argparse.ArgumentParser(prog="python -m zoo.vlm_card", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder of config.json and model.safetensors")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(str(options.folder), dtype="float32")
    held = emoji.part(emoji.load(options.cache), held_out=True)
    print_answers(model, tokenizer, held)
    print_picture(model, tokenizer, held, options.folder / "samples.png")
    layers = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    weights = {name: weight.detach() for name, weight in layers.items()}
    for title, matrices in (("weight", weights), ("input of", inputs_of(model, tokenizer, held))):
        for tower, own in towers(matrices).items():
            print_peaks(f"{tower}: {title}", own)


if __name__ == "__main__":
    main()
