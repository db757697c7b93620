"""The packed layer that takes a layer's place: made empty, on its device, to be filled or loaded."""

from torch import nn

from minifloat.embedding import QEmbedding
from minifloat.errors import UserError
from minifloat.layers import QConv2d, QLayer, QLinear
from minifloat.spec import LayerSpec


def packed_like(module: nn.Module, spec: LayerSpec, rank: int = 0) -> QLayer:
    """The empty packed layer that takes a layer's place, on its device.

    Raises:
        UserError: a layer of another kind.
    """
    if isinstance(module, nn.Linear):
        size = (module.in_features, module.out_features)
        dtype, bias = module.weight.dtype, module.bias is not None
        with module.weight.device:
            return QLinear(*size, spec, bias=bias, rank=rank, dtype=dtype)
    if isinstance(module, nn.Conv2d):
        with module.weight.device:
            return QConv2d(module, spec, rank=rank)
    if isinstance(module, nn.Embedding):
        with module.weight.device:
            return QEmbedding(module, spec)
    raise UserError(
        f"a {type(module).__name__} cannot be packed; linear layers, Conv2d and Embedding can"
    )
