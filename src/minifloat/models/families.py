"""Which adapter a model asks for, by its shape."""

from torch import nn

from minifloat.errors import UserError
from minifloat.models import dit, llama, unet
from minifloat.models.adapter import Adapter
from minifloat.models.dit import DiTAdapter
from minifloat.models.llama import LlamaAdapter
from minifloat.models.unet import UNetAdapter


def adapter_for(model: nn.Module) -> Adapter:
    """The adapter of a model's family.

    Raises:
        UserError: a model of no known shape.
    """
    if llama.accepts(model):
        return LlamaAdapter()
    if unet.accepts(model):
        return UNetAdapter.of(model)
    if dit.accepts(model):
        return DiTAdapter.of(model)
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
