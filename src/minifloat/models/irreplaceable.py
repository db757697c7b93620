"""Layers that no packed layer can take the place of, because the model does more than call them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

# transformers' Mamba mixers multiply with dt_proj.weight, because the bias belongs behind the scan.
_READ = ("dt_proj",)


def why_irreplaceable(name: str, module: nn.Module) -> str:
    """The reason in words for the ledger; empty for an ordinary layer or no layer at all."""
    is_read = name.rpartition(".")[2] in _READ
    if is_read or isinstance(module, NonDynamicallyQuantizableLinear):  # of MultiheadAttention
        return "the model reads this weight itself and never calls the layer"
    if isinstance(module, nn.Linear | nn.Conv2d) and not _is_ordinary(module):
        return "the layer computes more than a linear map"  # Llama 4's router
    if isinstance(module, nn.Embedding) and not _is_plain(module):
        return "the layer computes more than a look-up"  # Gemma scales its embeddings
    return ""


def _is_plain(table: nn.Embedding) -> bool:
    return type(table).forward is nn.Embedding.forward and table.max_norm is None


@torch.no_grad()
def _is_ordinary(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer computes what its class's parent does; Falcon spells out the same product."""
    parent = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    if type(layer).forward is parent.forward:
        return True
    if layer.weight.is_meta:
        return False
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (1, layer.in_features)
    else:
        taps = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = (1, layer.in_channels, *(size * step for size, step in taps))
    x = torch.linspace(-1, 1, shape[-1], dtype=layer.weight.dtype, device=layer.weight.device)
    x = x.expand(shape).contiguous()
    found, expected = layer(x), parent.forward(layer, x)  # type: ignore[arg-type]
    return isinstance(found, Tensor) and torch.allclose(found, expected, rtol=1e-2, atol=1e-4)
