"""Several blocks in a row that passes see as one (windows of CBQ, arXiv 2312.07950, and of QLLM).

The runs of a model wait at one block at a time and cannot go back. So the quantized runs are handed a
placeholder as a block's output and go on to the next block; the true output is written into it when
the block is finished. That is right only where nothing but blocks looks at it meanwhile. Full precision
goes first and shows whether the next block is called with the very tensor; where the model computes
something in between, such as a U-Net's concatenations, the window ends. And placeholders are NaN, so
that what is computed from one unseen is seen at the next block.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.checkpoint import checkpoint

from minifloat.calibrate.runs import Call
from minifloat.errors import UserError

_ALONE = "use windows of one block"


@dataclass
class Step:
    """One block on its way.

    Attributes:
        name, block: the block.
        calls: its calls in the quantized stream, one a batch.
        targets: its outputs in full precision.
        handed: placeholders for its quantized outputs, where the runs have gone on with them.
    """

    name: str
    block: nn.Module
    calls: list[Call]
    targets: list[Any]
    handed: list[Any] = field(default_factory=list)
    passed: bool = False  # full precision has gone on with the targets


class Chain(nn.Module):
    """Blocks one after the other; each is called as the model calls it, on outputs of those before.

    Where gradients are wanted a block keeps its inputs alone and is computed once more on the way
    back, so that a window of any length holds the activations of one block.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = list(blocks)
        self.blocks = nn.ModuleList(blocks.values())

    def path(self, name: str) -> str:
        """The name inside this module of what the model calls `name`."""
        for index, block in enumerate(self.names):
            if name == block or name.startswith(f"{block}."):
                return f"blocks.{index}{name.removeprefix(block)}"
        raise KeyError(name)

    def forward(self, *links: tuple[Call, Any]) -> Any:
        """The last block's output, for each block's call and the placeholder of its output."""
        known: dict[int, Tensor] = {}

        def true(x: Any) -> Any:
            return known.get(id(x), x)

        output = None
        for block, (call, handed) in zip(self.blocks, links, strict=True):
            args, kwargs = tree_map(true, call.args), tree_map(true, call.kwargs)
            output = (
                _recomputed(block, args, kwargs)
                if torch.is_grad_enabled()
                else block(*args, **kwargs)
            )
            if handed is not None:
                known |= {id(place): found for place, found in _pairs(handed, output)}
        return output


def _recomputed(block: nn.Module, args: Any, kwargs: Any) -> Any:
    """The block's output, without the activations behind it.

    Its tensors are named here and now: those that learn stand in for parameters only until the
    window returns, and the second computation comes after that.
    """
    own = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    return checkpoint(functional_call, block, own, args, kwargs, use_reentrant=False)


def as_one(steps: Sequence[Step]) -> tuple[nn.Module, list[Call]]:
    """The block and the calls of a window over some steps; those of a single one are its own."""
    if len(steps) == 1:
        return steps[0].block, steps[0].calls
    calls = []
    for index in range(len(steps[0].calls)):
        links = tuple((s.calls[index], s.handed[index] if s.handed else None) for s in steps)
        calls.append(Call(steps[0].name, links, {}))
    return Chain({step.name: step.block for step in steps}), calls


def placeholder(output: Any) -> Any:
    """A tree like a block's output that holds NaN."""

    def unknown(x: Tensor) -> Tensor:
        return torch.full_like(x, torch.nan) if x.is_floating_point() else x.clone()

    return tree_map_only(Tensor, unknown, output)


def fill(handed: Any, output: Any) -> None:
    """Write a block's output into its placeholder."""
    for place, found in _pairs(handed, output):
        place.copy_(found)


def _pairs(handed: Any, output: Any) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(tree_leaves(handed), tree_leaves(output), strict=True)
    return [(place, found) for place, found in pairs if isinstance(place, Tensor)]


def versions(output: Any) -> list[int]:
    """How often each tensor of a tree was written to."""
    return [leaf._version for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def hands_on(output: Any, call: Call | None) -> bool:
    """Whether a call is given one of an output's tensors itself."""
    if call is None:
        return False
    own = {id(leaf) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)}
    return any(id(leaf) in own for leaf in tree_leaves((call.args, call.kwargs)))


def check_untouched(before: Sequence[int], output: Any, name: str) -> None:
    """Refuse a model that writes into a block's output before the next block has seen it."""
    if versions(output) != before:
        raise UserError(f"the model writes into the output of {name}; {_ALONE}")


def check_known(call: Call, handed: Iterable[Any]) -> None:
    """Refuse a call that the model has computed from a placeholder."""
    known = {id(leaf) for tree in handed for leaf in tree_leaves(tree)}
    for leaf in tree_leaves((call.args, call.kwargs)):
        own = not isinstance(leaf, Tensor) or not leaf.is_floating_point() or id(leaf) in known
        if not own and bool(leaf.isnan().any()):
            raise UserError(
                f"the model computes an input of {call.name} from other blocks' outputs; {_ALONE}"
            )
