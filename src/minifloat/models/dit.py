"""Diffusion transformers of diffusers: DiT, PixArt, Hunyuan, SD3, Flux, Sana, Wan, Latte and kin.

No file per model: the blocks are the members of the lists right under the model, whatever these are
called (transformer_blocks, single_transformer_blocks, blocks ...), and the walk finds out who calls
whom. Embeddings, the shared AdaLN layer and the output head lie outside and stay in full precision.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from minifloat.errors import UserError
from minifloat.models.adapter import call
from minifloat.models.diffusion_seams import diffusion_seams
from minifloat.models.seam import Seam
from minifloat.models.split import split_layers


@dataclass(frozen=True)
class DiTAdapter:
    """Adapter of diffusion transformers; a batch is a tuple or a dict of the model's arguments.

    Attributes:
        splits: input channels of layers that are fed by a concatenation, by layer name; see `split`.
    """

    splits: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def accepts(model: nn.Module) -> bool:
        """Whether a model has lists of blocks right under it."""
        return bool(block_lists(model))

    @staticmethod
    def of(model: nn.Module) -> "DiTAdapter":
        """The adapter of a transformer, ready to split the layers that see concatenations."""
        return DiTAdapter(splits=concatenation_splits(block_lists(model)))

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        found = block_lists(model)
        if not found:
            raise UserError(
                f"{type(model).__name__} has no list of transformer blocks right under it. Write a "
                "class with blocks(model) and run(model, batch) (minifloat.models.adapter.Adapter) "
                "and pass it as adapter="
            )
        return found

    def run(self, model: nn.Module, batch: Any) -> None:
        call(model, batch)

    def seams(self, model: nn.Module) -> list[Seam]:
        """Where maps of channels cancel."""
        return diffusion_seams(model)

    def split(self, model: nn.Module) -> None:
        """Cut the layers of `splits` in place; the model's function stays the same."""
        split_layers(model, self.splits)


def block_lists(model: nn.Module) -> dict[str, nn.Module]:
    """The members of the lists of blocks by full name; lists of bare layers are none."""
    return {
        f"{name}.{i}": block
        for name, blocks in model.named_children()
        if isinstance(blocks, nn.ModuleList)
        for i, block in enumerate(blocks)
        if any(block.children())
    }


def concatenation_splits(blocks: dict[str, nn.Module]) -> dict[str, list[int]]:
    """The layers that see two tensors side by side, with both channel counts.

    Hunyuan's blocks on the way out take the path and a skip. A block of Flux's second kind runs
    attention and feed-forward side by side into one output layer.
    """
    splits = {}
    for name, block in blocks.items():
        skip = getattr(block, "skip_linear", None)
        if isinstance(skip, nn.Linear):
            splits[f"{name}.skip_linear"] = [
                skip.in_features - skip.out_features,
                skip.out_features,
            ]
        hidden, out = getattr(block, "proj_mlp", None), getattr(block, "proj_out", None)
        if isinstance(hidden, nn.Linear) and isinstance(out, nn.Linear):
            attention = out.in_features - hidden.out_features
            if attention > 0:
                splits[f"{name}.proj_out"] = [attention, hidden.out_features]
    return splits
