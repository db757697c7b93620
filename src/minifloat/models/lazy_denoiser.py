"""Denoisers larger than memory: networks of diffusers whose blocks stay in their files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from minifloat.errors import UserError
from minifloat.models.adapter import Adapter
from minifloat.models.families import adapt
from minifloat.models.lazy import Lazy
from minifloat.models.pipeline import denoiser_class, open_pipeline
from minifloat.models.split import SplitLayer
from minifloat.shards import Columns, Entry, Place, entries

# Their own forward reaches into a block that it has called before.
_REACHING_IN = ("DiTTransformer2DModel",)


def load_denoiser_lazily(folder: Path, cls: Any) -> tuple[nn.Module, Adapter, Lazy]:
    """A network of diffusers without the weights of its blocks; its adapter, and they.

    Layers that see a concatenation are split already.

    Args:
        folder: of the network.
        cls: its class.

    Raises:
        UserError: no such folder with safetensors, names that are not the network's, or a class that
            cannot do without its blocks.
    """
    from accelerate import init_empty_weights

    if cls.__name__ in _REACHING_IN:
        raise UserError(
            f"{cls.__name__} reads weights of its blocks from outside, so it cannot be loaded block by "
            "block; run without --memory"
        )
    try:
        with init_empty_weights(include_buffers=False):
            network = cls.from_config(cls.load_config(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load the {cls.__name__} in {folder} ({error})") from error
    found: dict[str, Place] = {**entries(folder)}
    adapter = adapt(network)
    for layer, module in network.named_modules():
        if isinstance(module, SplitLayer):
            found |= _spans(found, layer, module.sizes)
    return network.eval(), adapter, Lazy(network, adapter.blocks(network), found)


def open_lazily(source: str) -> tuple[Any, Adapter, Lazy]:
    """A pipeline of a local folder whose denoiser comes block by block."""
    folder = Path(source).expanduser()
    name, cls = denoiser_class(folder)
    network, adapter, lazy = load_denoiser_lazily(folder / name, cls)
    return open_pipeline(source, ready={name: network}), adapter, lazy


def _spans(found: Mapping[str, Place], layer: str, sizes: list[int]) -> dict[str, Place]:
    """Where the tensors of a split layer lie: its columns, and the bias with the first of them."""
    weight, bias = found.get(f"{layer}.weight"), found.get(f"{layer}.bias")
    spans: dict[str, Place] = {} if bias is None else {f"{layer}.parts.0.bias": bias}
    if isinstance(weight, Entry):
        for i, size in enumerate(sizes):
            spans[f"{layer}.parts.{i}.weight"] = Columns(weight, sum(sizes[:i]), size)
    return spans
