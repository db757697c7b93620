"""Decoder-only language models of transformers: Llama, Mistral, Qwen, Gemma, SmolLM, OPT and kin.

No file per model: the family is known by its shape, one `ModuleList` of decoder blocks under the
model's own `get_decoder()`.
"""

from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.models.seam import Seam
from minifloat.models.stack import language_seams

# Where transformers keeps the blocks below the decoder.
_LISTS = ("layers", "h", "blocks")


class LlamaAdapter:
    """Adapter of Llama-shaped language models; batches are token ids [batch, length]."""

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Whether a model has the shape of a language model of transformers."""
        return callable(getattr(model, "get_decoder", None))

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        return decoder_blocks(model)

    def run(self, model: nn.Module, batch: Tensor) -> None:
        decoder_of(model)(input_ids=batch, use_cache=False)

    def seams(self, model: nn.Module) -> list[Seam]:
        """Where maps of channels cancel: in branches, behind norms, along the residual stream."""
        return language_seams(model, decoder_blocks(model))


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder's blocks by full name."""
    decoder = decoder_of(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    for attribute in _LISTS:
        layers = getattr(decoder, attribute, None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            stem = f"{prefix}.{attribute}" if prefix else attribute
            return {f"{stem}.{i}": layer for i, layer in enumerate(layers)}
    raise _unknown_model(model)


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that holds the blocks."""
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else None
    for found in (decoder, getattr(decoder, "model", None)):  # Llama 4 says that it is its own
        if isinstance(found, nn.Module) and any(hasattr(found, name) for name in _LISTS):
            return found
    raise _unknown_model(model)


def _unknown_model(model: nn.Module) -> UserError:
    return UserError(
        f"minifloat does not know how to walk {type(model).__name__}: it has no list of decoder "
        "blocks under get_decoder(). Write a class with blocks(model) and run(model, batch) "
        "(minifloat.models.adapter.Adapter) and pass it as adapter="
    )
