"""llama-tiny: a 4 M parameter Llama, for tests that must run in seconds and for weight-only claims.

The embeddings are untied on purpose: the larger test model, SmolLM2, has tied ones, and a quantizer
must handle both.

    python -m zoo.train llama-tiny --out DIR            train (resumable)
    python -m zoo.language_card zoo/llama-tiny          measure
"""

import argparse
from typing import TYPE_CHECKING

from zoo import language
from zoo.language import Recipe

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RECIPE = Recipe()


def build(recipe: Recipe) -> "LlamaForCausalLM":
    """Return a freshly initialised LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def train(options: argparse.Namespace) -> None:
    """Train with the options of `zoo.train`."""
    language.run(build, RECIPE, options)
