"""Diffusion U-Nets: residual blocks, attention and resampling, called in any order with any skips.

A family is a set of class names; the walk finds out the order and the wiring by itself. Layers that
see a concatenation are split first (`split.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from minifloat.errors import UserError
from minifloat.models.adapter import call
from minifloat.models.diffusion_seams import diffusion_seams
from minifloat.models.seam import Seam
from minifloat.models.split import split_layers

# diffusers' units of work; the outermost that matches is the block.
_BLOCKS = (
    "ResnetBlock2D",
    "ResnetBlockCondNorm2D",
    "BasicTransformerBlock",
    "Attention",
    "Downsample2D",
    "Upsample2D",
)
# Layers around a stack of transformer blocks, which are blocks of their own.
_AROUND = ("proj_in", "proj_out")


@dataclass(frozen=True)
class UNetAdapter:
    """Adapter of U-Nets; a batch is a tuple or a dict of the model's arguments.

    Attributes:
        names: class names of the blocks.
        splits: input channels of layers that are fed by a concatenation, by layer name; see `split`.
    """

    names: Sequence[str] = _BLOCKS
    splits: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Whether a model has the shape of a U-Net of diffusers."""
        return hasattr(model, "mid_block") and hasattr(model, "up_blocks")

    @staticmethod
    def of(model: nn.Module) -> "UNetAdapter":
        """The adapter of a U-Net of diffusers, ready to split the layers that see its skips."""
        return UNetAdapter(splits=skip_splits(model))

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in found)
            known = type(module).__name__ in self.names or name.rpartition(".")[2] in _AROUND
            if known and not inside:
                found[name] = module
        if not found:
            raise UserError(
                f"{type(model).__name__} has no blocks of the kinds {', '.join(self.names)}; "
                "name its own with UNetAdapter(names=...)"
            )
        return found

    def run(self, model: nn.Module, batch: Any) -> None:
        call(model, batch)

    def seams(self, model: nn.Module) -> list[Seam]:
        """Where maps of channels cancel, in U-Nets and any other model of diffusers."""
        return diffusion_seams(model)

    def split(self, model: nn.Module) -> None:
        """Cut the layers of `splits` in place; the model's function stays the same."""
        split_layers(model, self.splits)


def skip_splits(model: nn.Module) -> dict[str, list[int]]:
    """The layers of a diffusers U-Net that see [path, skip] concatenated, with both channel counts.

    On the way up a residual block takes what the one before it gave and, where its input is wider
    than that, a skip. Its first convolution sees both behind a norm, its shortcut without.
    """
    middle, ups = getattr(model, "mid_block", None), getattr(model, "up_blocks", None)
    if middle is None or ups is None:
        raise UserError(f"{type(model).__name__} has no mid_block and up_blocks of diffusers")
    width = middle.resnets[-1].out_channels
    splits = {}
    for i, up in enumerate(ups):
        for j, resnet in enumerate(up.resnets):
            if resnet.in_channels > width:
                spans = [width, resnet.in_channels - width]
                splits[f"up_blocks.{i}.resnets.{j}.conv1"] = spans
                if resnet.conv_shortcut is not None:
                    splits[f"up_blocks.{i}.resnets.{j}.conv_shortcut"] = spans
            width = resnet.out_channels
    return splits
