"""The layers outside the blocks: the embedding of tokens and the output head."""

from typing import Any

from torch import nn


def output_layer(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The output layer by its full name."""
    return _named(model, "get_output_embeddings")


def outside_layers(model: nn.Module) -> dict[str, str]:
    """Both by full name, each with the one that holds its weight: of a tied head, the embedding.

    Empty for models that say of neither where it is (diffusers).
    """
    table, head = _named(model, "get_input_embeddings"), output_layer(model)
    found = {}
    if table is not None and isinstance(table[1], nn.Embedding):
        found[table[0]] = table[0]
    if head is not None and isinstance(head[1], nn.Linear):
        tied = table is not None and table[1].weight is head[1].weight
        found[head[0]] = table[0] if table is not None and tied else head[0]
    return found


def _named(model: nn.Module, getter: str) -> tuple[str, nn.Module] | None:
    get = getattr(model, getter, None)
    try:
        layer: Any = get() if callable(get) else None
    except NotImplementedError:  # transformers' way to say that there is none
        return None
    return next((found for found in model.named_modules() if found[1] is layer), None)
