"""Layers whose weight a model reads itself, without calling them: nothing can be put in their place."""

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

# transformers' Mamba mixers multiply with dt_proj.weight, because the bias belongs behind the scan.
_NAMES = ("dt_proj",)


def is_read_directly(name: str, module: nn.Module) -> bool:
    """Whether the layer `name` is only a place to keep a weight, as in torch's MultiheadAttention."""
    leaf = name.rpartition(".")[2]
    return leaf in _NAMES or isinstance(module, NonDynamicallyQuantizableLinear)
