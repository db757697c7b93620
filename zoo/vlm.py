"""vlm: a small LLaVA that looks at emoji and answers three questions about them.

Why this file exists: the claims about quantized vision-language models are about three towers and two
kinds of tokens in one sequence. This is the ordinary `LlavaForConditionalGeneration` of transformers:
the tower of `zoo.vision_tower`, a projector, and llama-tiny, all trained together on pictures with a
question and its answer. SmolLM2 in place of llama-tiny would cost thirty times as much a step.

    python -m zoo.train vlm --out DIR            train (resumable)
    python -m zoo.vlm_card zoo/vlm               measure
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from zoo import descent, emoji, runs, text, vision_tower
from zoo.descent import Recipe, places
from zoo.emoji import GROUPS, NO_GROUP, SIZE, Emoji, Pictures
from zoo.noising import normed

LANGUAGE = Path(__file__).resolve().parent / "llama-tiny"
IMAGE, PAD = "<image>", "<pad>"
VOCAB = 2056  # 2,048, those two, and what makes it a multiple of 8
SEEN = (SIZE // vision_tower.PATCH) ** 2  # tokens a picture takes
IGNORED = -100  # in labels

KIND, STYLE, NAME = "Which kind?", "Which style?", "Which name?"
QUESTIONS = (KIND, STYLE, NAME)
RECIPE = Recipe(
    steps=2_400,
    batch=12,
    peak_rate=7e-4,
    warmup=30,
    weight_decay=0.05,
    log_every=25,
    validate_every=100,
)


class Example(NamedTuple):
    """A picture by its place, a question and the answer."""

    place: int
    question: str
    answer: str


def answers(one: Emoji) -> dict[str, str]:
    """What is to be said of an emoji; one in no group is asked for no kind."""
    kind = {} if one.group == NO_GROUP else {KIND: list(GROUPS)[one.group]}
    return kind | {STYLE: one.style, NAME: one.caption.split(": ", 1)[1]}


def examples(listed: list[Emoji]) -> list[Example]:
    """All questions about all pictures."""
    return [Example(i, q, a) for i, one in enumerate(listed) for q, a in answers(one).items()]


# --- tokens -------------------------------------------------------------------------------------


def build_tokenizer() -> Tokenizer:
    """That of llama-tiny, with tokens for a picture's patch and for padding."""
    tokenizer = Tokenizer.from_file(str(LANGUAGE / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(IMAGE), AddedToken(PAD)])
    return tokenizer


def prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """A picture's tokens, then a question's."""
    return [tokenizer.token_to_id(IMAGE)] * SEEN + tokenizer.encode(" " + question).ids


def batch_of(tokenizer: Tokenizer, asked: list[Example], images: Tensor) -> dict[str, Tensor]:
    """The model's arguments for examples and their pictures, uint8 [n, 3, 32, 32].

    Only answers, and the end behind them, are learned.
    """
    end, pad = (tokenizer.token_to_id(token) for token in (text.END, PAD))
    before = [prompt(tokenizer, one.question) for one in asked]
    after = [[*tokenizer.encode(" " + one.answer).ids, end] for one in asked]
    length = max(len(p) + len(a) for p, a in zip(before, after, strict=True))
    ids = torch.full((len(asked), length), pad)
    labels = torch.full_like(ids, IGNORED)
    for row, (p, a) in enumerate(zip(before, after, strict=True)):
        ids[row, : len(p) + len(a)] = torch.tensor(p + a)
        labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
    mask = (ids != pad).long()
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": normed(images),
    }


# --- model --------------------------------------------------------------------------------------


def build(tower: Path, language: Path) -> Any:
    """A LlavaForConditionalGeneration whose eye and language are trained, and whose projector is not."""
    from transformers import (
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionModel,
    )

    eye = SiglipVisionModel.from_pretrained(tower, dtype=torch.float32)
    speech = LlamaForCausalLM.from_pretrained(language, dtype=torch.float32)
    speech.resize_token_embeddings(VOCAB)
    eye.config._name_or_path = speech.config._name_or_path = ""  # no paths of this machine
    config = LlavaConfig(
        vision_config=eye.config,
        text_config=speech.config,
        image_token_id=build_tokenizer().token_to_id(IMAGE),
        image_seq_length=SEEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eye.state_dict())
    model.model.language_model.load_state_dict(speech.model.state_dict())
    model.lm_head.load_state_dict(speech.lm_head.state_dict())
    return model


def export(model: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Save what `from_pretrained` reads, in fp16: model, tokenizer and how pictures are prepared."""
    from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=text.END, eos_token=text.END, pad_token=PAD
    )
    pictures = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    LlavaProcessor(
        pictures,
        words,
        patch_size=vision_tower.PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
    ).save_pretrained(out)
    model.generation_config.pad_token_id = words.pad_token_id
    model.half().save_pretrained(out)


# --- the run ------------------------------------------------------------------------------------


def fit(
    pictures: Pictures,
    held: Pictures,
    tower: Path,
    out: Path,
    recipe: Recipe = RECIPE,
    resume: bool = False,
    stop: int | None = None,
    language: Path = LANGUAGE,
) -> list[float]:
    """Train in `out` from the tower of another run; return the loss of every step."""
    runs.begin(out, resume)
    torch.manual_seed(recipe.seed)
    model, tokenizer = build(tower, language), build_tokenizer()
    asked, unseen = examples(pictures.emoji), examples(held.emoji)

    def cut(chosen: list[Example], images: Tensor) -> dict[str, Tensor]:
        return batch_of(tokenizer, chosen, images[[one.place for one in chosen]])

    def loss(step: int) -> Tensor:
        chosen = [asked[i] for i in places(len(asked), step, recipe.batch, recipe.seed)]
        found: Tensor = model(**cut(chosen, pictures.images), use_cache=False).loss
        return found

    watched = [unseen[i] for i in places(len(unseen), 0, min(128, len(unseen)), recipe.seed)]

    @torch.no_grad()
    def watch() -> dict[str, float]:
        found = model(**cut(watched, held.images), use_cache=False).loss.item()
        return {"validation": round(found, 4)}

    return descent.train(
        out,
        recipe,
        model,
        loss,
        watch,
        export=lambda: export(model, tokenizer, out),
        resume=resume,
        stop=stop,
    )


def train(options: argparse.Namespace) -> None:
    """Train the tower, then all, with the options of `zoo.train`; each goes on where it stopped."""
    torch.set_num_threads(1)
    pictures = emoji.load(options.cache)
    seen, held = (emoji.part(pictures, held_out=side) for side in (False, True))
    eye = options.out / "eye"

    def own(recipe: Recipe) -> Recipe:
        return recipe if options.steps is None else replace(recipe, steps=options.steps)

    def resume(out: Path) -> bool:
        return options.resume and (out / runs.CHECKPOINT).exists()

    if not (eye / "tower").exists():
        vision_tower.fit(seen, held, eye, own(vision_tower.RECIPE), resume(eye))
    fit(seen, held, eye / "tower", options.out, own(RECIPE), resume(options.out))
