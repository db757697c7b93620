"""Seams of diffusers' models: U-Nets, autoencoders and diffusion transformers.

Behind a GroupNorm comes SiLU in a residual block, so no scale passes from the first convolution to the
second; but inside a group of the norm between them channels may change places.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from minifloat.models.diffusion_attention import attention_seams, feed_forward_seam, is_attention
from minifloat.models.modulation import block_seams, last_seam, shared_seams
from minifloat.models.seam import ORDER, SCALE, Seam, Slot
from minifloat.models.slots import columns, features, gains, is_layer, rows
from minifloat.models.split import SplitLayer


def diffusion_seams(model: nn.Module) -> list[Seam]:
    """Where maps of channels cancel in a model of diffusers, found by the classes of its modules."""
    seams = [seam for name, module in model.named_modules() for seam in _of(name, module, model)]
    return [*seams, *shared_seams(model), *last_seam(model)]


def _of(name: str, module: Any, model: nn.Module) -> Iterator[Seam]:
    kind = type(module).__name__
    if kind == "ResnetBlock2D":
        yield from _residual_block(name, module)
    elif kind == "Transformer2DModel" and isinstance(getattr(module, "norm", None), nn.GroupNorm):
        gain, reads = gains(f"{name}.norm", module.norm), columns(f"{name}.proj_in", module.proj_in)
        yield Seam(f"{name}.norm", "norm", module.norm.num_channels, gain, reads, (SCALE,))
    elif kind == "FeedForward":
        if (seam := feed_forward_seam(name, module)) is not None:
            yield seam
    elif is_attention(module):
        yield from attention_seams(name, module, _outside(name, model))
    elif is_layer(getattr(module, "proj_mlp", None)) and is_layer(module.proj_out):
        yield _parallel_mlp(name, module)
    yield from block_seams(name, module)


def _residual_block(name: str, block: Any) -> Iterator[Seam]:
    """conv1 -> (+ time) -> norm2 -> SiLU -> conv2: orders inside the groups of norm2."""
    norm = block.norm2
    if not isinstance(norm, nn.GroupNorm) or block.time_embedding_norm == "spatial":
        return
    width = norm.num_channels
    inside = (*_all_rows(f"{name}.conv1", block.conv1), *gains(f"{name}.norm2", norm))
    time = block.time_emb_proj
    if time is not None:
        for start in range(0, features(time)[0], width):  # scale and shift, or one addend
            inside += rows(f"{name}.time_emb_proj", time, start=start)
    reads = columns(f"{name}.conv2", block.conv2)
    cell = width // norm.num_groups
    yield Seam(name, "conv", width, inside, reads, (ORDER,), cell=cell)


def _all_rows(name: str, layer: nn.Module) -> tuple[Slot, ...]:
    """Rows of a layer, or of every part of one that was split by its inputs."""
    if not isinstance(layer, SplitLayer):
        return rows(name, layer)
    parts = enumerate(layer.parts)
    return tuple(slot for i, part in parts for slot in rows(f"{name}.parts.{i}", part))


def _parallel_mlp(name: str, block: Any) -> Seam:
    """Flux's single blocks: attention and feed-forward side by side, one layer reads both."""
    first = (f"{name}.proj_mlp", block.proj_mlp)
    width = features(block.proj_mlp)[0]
    start = features(block.proj_out)[1] - width
    reads = columns(f"{name}.proj_out", block.proj_out, start=start)
    return Seam(name, "up", width, rows(*first), reads, (ORDER,))


def _outside(name: str, model: nn.Module) -> tuple[Slot, ...]:
    """The columns of a single block's output layer that read its attention."""
    parent_name = name.rpartition(".")[0]
    parent: Any = model.get_submodule(parent_name)
    if is_layer(getattr(parent, "proj_mlp", None)) and is_layer(parent.proj_out):
        return columns(f"{parent_name}.proj_out", parent.proj_out)
    return ()
