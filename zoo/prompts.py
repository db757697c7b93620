"""What a text-to-image model of the zoo reads: hidden states of a caption in SmolLM2-135M.

Why this file exists: real text-to-image models see their prompt through a language model, and its
first token, the same in every prompt, is enormous: that token is what MixDQ (arXiv:2405.17873) treats
apart. A causal model has it by nature, since nothing but itself is in its view. After 8 of SmolLM2's
30 blocks one of its channels is about 165 times as large as the usual entry of a later token, close
to the case in that paper; after 12 it would be 3,000 times. Twelve groups of emoji are told apart by
a linear probe as well after 8 blocks as after any later one.

A prompt is token 0 of SmolLM2 and up to 15 of the caption. The prompt without words, for guidance, is
token 0 alone. States are divided by 8, which brings usual entries below 1 and is exact in binary.

    python -m zoo.prompts mine.safetensors "3d emoji: green heart" "flat emoji: sad face"
"""

import argparse
import hashlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minifloat.demo import demo_model
from minifloat.models.load import load_model
from minifloat.models.prompts import Prompts as Asked

BLOCKS = 8  # of SmolLM2 that a prompt goes through
TOKENS = 16
WIDTH = 576
FIRST = 0  # <|endoftext|>
SCALE = 1 / 8


class Prompts(NamedTuple):
    """Captions and what a model reads of them."""

    captions: list[str]
    text: Tensor  # fp16 [captions, TOKENS, WIDTH], zero behind the end
    mask: Tensor  # bool [captions, TOKENS], true at tokens


@torch.inference_mode()
def states(model: Any, tokenizer: Any, caption: str) -> Tensor:
    """The states of a caption, fp16 [tokens, WIDTH], in a model cut behind its first blocks."""
    ids = [FIRST, *tokenizer(caption, add_special_tokens=False).input_ids][:TOKENS]
    seen = model(torch.tensor([ids], device=model.device), output_hidden_states=True).hidden_states
    return (SCALE * seen[BLOCKS][0]).half().cpu()


def encode(captions: list[str], source: str | None = None) -> Prompts:
    """Prompts of captions; `source` is a folder or GGUF file of SmolLM2, by default the demo's."""
    loaded, tokenizer = load_model(source or str(demo_model()), dtype="float32")
    model = loaded.model
    # The states behind the very last block would come normed, so one block more is kept.
    model.layers = model.layers[: BLOCKS + 1]
    first = states(model, tokenizer, "")
    return padded(captions, first, [states(model, tokenizer, c)[1:] for c in captions])


def padded(captions: list[str], first: Tensor, rest: list[Tensor]) -> Prompts:
    """Prompts out of the common first state [1, WIDTH] and the others [tokens, WIDTH] of each."""
    text = torch.zeros(len(captions), TOKENS, WIDTH, dtype=torch.float16)
    mask = torch.zeros(len(captions), TOKENS, dtype=torch.bool)
    text[:, :1], mask[:, 0] = first, True
    for i, own in enumerate(rest):
        text[i, 1 : 1 + len(own)], mask[i, 1 : 1 + len(own)] = own, True
    return Prompts(captions, text, mask)


def pick(prompts: Prompts, places: list[int]) -> Prompts:
    """Some of the prompts."""
    captions = [prompts.captions[i] for i in places]
    return Prompts(captions, prompts.text[places], prompts.mask[places])


def arguments(prompts: Prompts, masks: bool) -> dict[str, Tensor]:
    """The prompts as a pipeline of diffusers takes them, with one wordless prompt for guidance."""
    without = torch.zeros_like(prompts.text[:1])
    without[:, 0] = prompts.text[0, 0]
    found = {"prompt_embeds": prompts.text, "negative_prompt_embeds": without}
    if masks:
        found["prompt_attention_mask"] = prompts.mask.long()
        found["negative_prompt_attention_mask"] = torch.zeros_like(prompts.mask[:1]).long()
        found["negative_prompt_attention_mask"][:, 0] = 1
    return found


def for_pipeline(prompts: Prompts, pipe: Any) -> Asked:
    """The prompts as `minifloat.models.pipeline.sample` takes them."""
    values = arguments(prompts, takes_masks(pipe))
    rows = {name: x.expand(len(prompts.captions), *x.shape[1:]) for name, x in values.items()}
    return Asked(
        prompts.captions, {k: x.float() if x.is_floating_point() else x for k, x in rows.items()}
    )


def takes_masks(pipe: Any) -> bool:
    """Whether a pipeline hides the padding of prompts."""
    return "prompt_attention_mask" in inspect.signature(pipe.__call__).parameters


def write(path: Path, prompts: Prompts, masks: bool = True) -> None:
    """Keep prompts in a file that `minifloat --data` reads too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(arguments(prompts, masks), partial, {"captions": json.dumps(prompts.captions)})
    partial.replace(path)


def read(path: Path) -> Prompts:
    """Prompts out of a file of `write` that has masks."""
    with safe_open(path, framework="pt") as file:
        mask = file.get_tensor("prompt_attention_mask").bool()
        return Prompts(
            json.loads(file.metadata()["captions"]), file.get_tensor("prompt_embeds"), mask
        )


def cached(captions: list[str], cache: Path, source: str | None = None) -> Prompts:
    """Prompts of captions, computed once (minutes) and then kept in the cache."""
    digest = hashlib.sha256(json.dumps([BLOCKS, TOKENS, FIRST, captions]).encode()).hexdigest()
    path = cache / f"prompts-{digest[:16]}.safetensors"
    if not path.exists():
        write(path, encode(captions, source))
    return read(path)


def main() -> None:
    """Turn captions into a file of prompts for the zoo's models of images."""
    parser = argparse.ArgumentParser(prog="python -m zoo.prompts", description=main.__doc__)
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument("captions", nargs="+", help="'flat emoji: ...' or '3d emoji: ...'")
    parser.add_argument("--masks", action="store_true", help="for dit-text, whose pipeline asks")
    parser.add_argument("--text-model", help="folder or GGUF of SmolLM2 (default: from PyPI)")
    options = parser.parse_args()
    write(options.out, encode(options.captions, options.text_model), options.masks)


if __name__ == "__main__":
    main()
