"""From text to batches of token ids, the same for every language model of the zoo.

Why this file exists: perplexities of models can only be compared under one tokenizer and one way to
cut windows. The tokenizer is trained on the training text alone, so all models get the same.
"""

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from zoo import corpora

END = "<|endoftext|>"


def train_tokenizer(text: str, vocab: int) -> Tokenizer:
    """Return a byte-level BPE: no text is out of its vocabulary, whatever the tests feed it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpora.split(text), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> Tensor:
    """Return one stream of token ids in which END opens every speech."""
    end = tokenizer.token_to_id(END)
    speeches = tokenizer.encode_batch(corpora.split(text))
    return torch.tensor([token for speech in speeches for token in (end, *speech.ids)])


def draw_batch(tokens: Tensor, step: int, batch: int, context: int, seed: int) -> Tensor:
    """Return the windows of one step, [batch, context + 1], as a function of seed and step.

    An epoch visits every window once in random order; a new random shift per epoch moves the
    window borders, so that no token always stands at the start of a window.
    """
    per_epoch = (len(tokens) - 1 - context) // context // batch
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(1000 * seed + epoch)
    shift = torch.randint(context, (), generator=generator)
    order = torch.randperm(per_epoch * batch, generator=generator)
    starts = order[index * batch :][:batch] * context + shift
    return tokens[starts[:, None] + torch.arange(context + 1)]


def windows(tokens: Tensor, context: int, batch: int = 8) -> Iterator[Tensor]:
    """Yield batches of windows [n, context + 1] that predict every token but the first once."""
    yield from tokens.unfold(0, context + 1, context).split(batch)
