"""Layers that no packed layer can take the place of, because the model does more than call them."""

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

# transformers' Mamba mixers multiply with dt_proj.weight, because the bias belongs behind the scan.
_READ = ("dt_proj",)


def why_irreplaceable(name: str, module: nn.Module) -> str:
    """The reason in words for the ledger; empty for an ordinary layer or no layer at all."""
    is_read = name.rpartition(".")[2] in _READ
    if is_read or isinstance(module, NonDynamicallyQuantizableLinear):  # of MultiheadAttention
        return "the model reads this weight itself and never calls the layer"
    for kind in (nn.Linear, nn.Conv2d):
        if isinstance(module, kind) and type(module).forward is not kind.forward:
            return "the layer computes more than a linear map"  # Llama 4's router
    return ""
