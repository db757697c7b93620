"""Emoji with their captions, as the text-to-image models of the zoo learn from them."""

import argparse

import torch
from torch import Tensor

from zoo import emoji, prompts
from zoo.emoji import Pictures
from zoo.noising import Asked, Data
from zoo.prompts import Prompts

TEXT, MASK = "encoder_hidden_states", "encoder_attention_mask"


def load(options: argparse.Namespace, masked: bool) -> tuple[Data, Data]:
    """Pictures and prompts to train on, and the held-out ones; `masked` tells models of padding."""
    pictures = emoji.load(options.cache)
    read = words(pictures, options)
    asked = {TEXT: read.text} | ({MASK: read.mask} if masked else {})
    return split(pictures, asked, options.device)


def words(pictures: Pictures, options: argparse.Namespace) -> Prompts:
    """The prompt of every picture, in their order."""
    names = [one.caption for one in pictures.emoji]
    return prompts.cached(names, options.cache, options.text_model)


def split(pictures: Pictures, asked: Asked, device: str) -> tuple[Data, Data]:
    """What is trained on and what is held out, on a device."""
    held = torch.tensor([emoji.is_held_out(one.name) for one in pictures.emoji])
    whole = Data(pictures.images, asked)
    return moved(whole.rows(~held), device), moved(whole.rows(held), device)


def moved(data: Data, device: str) -> Data:
    """The same on a device."""
    return Data(data.images.to(device), {name: x.to(device) for name, x in data.asked.items()})


def forget(asked: Asked, chosen: Tensor) -> Asked:
    """The chosen prompts with all but their first token zero, and hidden where there is a mask."""
    first = torch.arange(asked[TEXT].shape[1], device=chosen.device) == 0
    kept = first | ~chosen[:, None]
    less = {TEXT: asked[TEXT] * kept[..., None]}
    return less | ({MASK: asked[MASK] & kept} if MASK in asked else {})
