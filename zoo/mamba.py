"""mamba1 and mamba2: small state-space language models with heavy-tailed channels.

Why this file exists: the claims about quantized Mamba are about a few channels of x, behind the
convolution, that are many times as large as the others, and about groups of B and C of unlike range
(Quamba2, arXiv:2503.22879, section 4). Models as small as these do not grow them by themselves. They
get them at birth: the kernels of the convolution are scaled by a log-normal factor a channel, and
training, which does not decay them, goes on from there. So the outliers are part of a function that
was learned with them, none was written in afterwards.

mamba1 has tied embeddings, as the published models of that architecture; mamba2 untied ones and two
groups, as Codestral Mamba has untied ones and eight.

    python -m zoo.train mamba1 --out DIR            train (resumable); the same for mamba2
    python -m zoo.language_card zoo/mamba1          measure
"""

import argparse
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo import language
from zoo.language import Recipe
from zoo.scan import fast_scan

if TYPE_CHECKING:
    from transformers import Mamba2ForCausalLM, MambaForCausalLM

RECIPE = Recipe(peak_rate=3e-3, fall=0.4)  # flat before, so that a run can be lengthened
SPREAD = 1.0  # of the logarithm of a channel's factor
FIRST_B, FIRST_C = 4.0, 3.0  # factor of the first group; the others keep theirs


@torch.no_grad()
def scatter(kernels: Tensor, channels: int) -> None:
    """Scale each of the first kernels [channels, 1, width] by a log-normal factor, in place."""
    kernels[:channels] *= torch.exp(SPREAD * torch.randn(channels, 1, 1))


def shape(recipe: Recipe) -> dict[str, Any]:
    """What the configurations of both have in common."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    size = {"hidden_size": 128, "num_hidden_layers": 4, "state_size": 16}
    return special | size | {"vocab_size": recipe.vocab, "use_cache": False}


def build_mamba1(recipe: Recipe) -> "MambaForCausalLM":
    """Return a freshly initialised MambaForCausalLM, 0.7 M parameters."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(**shape(recipe), tie_word_embeddings=True)
    model = MambaForCausalLM(config)
    for layer in model.backbone.layers:
        scatter(layer.mixer.conv1d.weight, layer.mixer.intermediate_size)
    return model


def build_mamba2(recipe: Recipe) -> "Mamba2ForCausalLM":
    """Return a freshly initialised Mamba2ForCausalLM, 1 M parameters, of two groups."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        **shape(recipe),
        num_heads=8,
        head_dim=32,
        n_groups=2,
        chunk_size=32,
        tie_word_embeddings=False,
    )
    model = Mamba2ForCausalLM(config)
    for layer in model.backbone.layers:
        x, b = layer.mixer.intermediate_size, config.n_groups * config.state_size
        kernels = layer.mixer.conv1d.weight  # of the channels of x, then of B, then of C
        scatter(kernels, x)
        with torch.no_grad():
            kernels[x : x + config.state_size] *= FIRST_B
            kernels[x + b : x + b + config.state_size] *= FIRST_C
    return model


def train_mamba1(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    with fast_scan():
        language.run(build_mamba1, RECIPE, options)


def train_mamba2(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    language.run(build_mamba2, RECIPE, options)
