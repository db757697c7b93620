"""Which adapter a model asks for, by its shape."""

from collections.abc import Callable

from torch import nn

from minifloat.errors import UserError
from minifloat.models.adapter import Adapter
from minifloat.models.dit import DiTAdapter
from minifloat.models.llama import LlamaAdapter
from minifloat.models.mamba import MambaAdapter
from minifloat.models.unet import UNetAdapter
from minifloat.models.vlm import VLMAdapter

# The first that accepts a model; the more special ones stand before LlamaAdapter.
_FAMILIES: tuple[tuple[Callable[[nn.Module], bool], Callable[[nn.Module], Adapter]], ...] = (
    (VLMAdapter.accepts, lambda _: VLMAdapter()),
    (MambaAdapter.accepts, lambda _: MambaAdapter()),
    (LlamaAdapter.accepts, lambda _: LlamaAdapter()),
    (UNetAdapter.accepts, UNetAdapter.of),
    (DiTAdapter.accepts, DiTAdapter.of),
)


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model's family.

    Raises:
        UserError: a model of no known shape.
    """
    for accepts, make in _FAMILIES:
        if accepts(model):
            return make(model)
    raise UserError(
        f"minifloat does not know how to walk {type(model).__name__}: it has no decoder blocks "
        "under get_decoder(), no mid_block and up_blocks of a U-Net and no list of transformer "
        "blocks. Write a class with blocks(model) and run(model, batch) "
        "(minifloat.models.adapter.Adapter) and pass it as adapter="
    )


def adapt(model: nn.Module) -> Adapter:
    """The adapter of a model's family, with the model made ready for it.

    Layers that see a concatenation are split in place; the model's function stays the same.
    """
    adapter = adapter_for(model)
    if isinstance(adapter, UNetAdapter | DiTAdapter):
        adapter.split(model)
    return adapter
