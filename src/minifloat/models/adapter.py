"""What the walk asks of a model: its blocks in order, and a run that reaches them.

An adapter is the only code that knows a model family. To serve a new one, write a class with these
two methods and pass it to `quantize(..., adapter=...)`.
"""

from typing import Any, Protocol

from torch import nn


class Adapter(Protocol):
    """The per-family code."""

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """Blocks by full name, in the order that activations pass them."""
        ...

    def run(self, model: nn.Module, batch: Any) -> None:
        """Run the model on a batch far enough that every block is called."""
        ...


def call(model: nn.Module, batch: Any) -> None:
    """Run a model on a batch that holds its arguments: a dict by name, or a tuple in order."""
    if isinstance(batch, dict):
        model(**batch)
    else:
        model(*batch)
