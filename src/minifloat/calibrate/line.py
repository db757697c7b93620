"""The calibration batches on their way through the blocks, in full precision and quantized."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minifloat.calibrate.chain import (
    Step,
    check_known,
    check_untouched,
    fill,
    hands_on,
    placeholder,
    versions,
)
from minifloat.calibrate.runs import Run
from minifloat.calibrate.shelf import Shelf
from minifloat.calibrate.team import Team
from minifloat.errors import UserError


class Line:
    """Blocks that the runs have reached and that are not finished yet, in order (`steps`).

    Args:
        blocks: all blocks by name.
        full, quantized: runs of each batch, waiting at the first block.
        shelf: where activations wait.
        team: the processes that share the batches.
        bring: loads a block's weights.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        full: Sequence[Run],
        quantized: Sequence[Run],
        shelf: Shelf,
        team: Team,
        bring: Callable[[str], None],
    ) -> None:
        self.blocks, self.full, self.quantized = blocks, full, quantized
        self.shelf, self.team, self.bring = shelf, team, bring
        self.waiting = list(blocks)
        self.steps: list[Step] = []

    def reach(self, width: int) -> bool:
        """Have `width` blocks in `steps`, or as many as a window can hold; False at the end."""
        while len(self.steps) < width and (not self.steps or self._pass_on(self.steps[-1])):
            name = self._next_block()
            if name is None:
                break
            self.waiting.remove(name)
            self.bring(name)
            calls = [run.call for run in self.quantized if run.call]
            for index, call in enumerate(calls if self.steps else ()):
                check_known(call, [step.handed[index] for step in self.steps])
            step = Step(name, self.blocks[name], calls, [])
            for run in self.full:
                assert run.call is not None
                output = step.block(*run.call.args, **run.call.kwargs)
                step.targets.append(self.shelf.keep(output))
            self.steps.append(step)
        return bool(self.steps)

    def finish(self, step: Step, block: nn.Module) -> float:
        """Hand what a step's quantized block gives to its runs; returns its SQNR in dB."""
        power = error = torch.zeros((), dtype=torch.float64)
        for index, (call, target) in enumerate(zip(step.calls, step.targets, strict=True)):
            output = self.shelf.keep(block(*call.args, **call.kwargs))
            for found, wanted in zip(tensors(output), tensors(target), strict=True):
                power = power + wanted.double().square().sum()
                error = error + (wanted - found).double().square().sum()
            if step.handed:
                fill(step.handed[index], output)
            else:
                self.quantized[index].resume(output)
            if not step.passed:
                self.full[index].resume(target)
        self.steps.remove(step)
        signal, noise = self.team.total(float(power)), self.team.total(float(error))
        return 10 * math.log10(signal / noise) if signal and noise else math.inf

    def _pass_on(self, last: Step) -> bool:
        """Let all runs go on behind a block that is not finished, if that can be."""
        if last.passed:
            return False  # the window had to end here
        before = [versions(target) for target in last.targets]
        last.passed = True
        for index, (run, target) in enumerate(zip(self.full, last.targets, strict=True)):
            run.resume(target)
            check_untouched(before[index], target, last.name)
        if not all(hands_on(t, run.call) for t, run in zip(last.targets, self.full, strict=True)):
            return False
        last.handed = [self.shelf.keep(placeholder(target)) for target in last.targets]
        for run, handed in zip(self.quantized, last.handed, strict=True):
            run.resume(handed)
        return True

    def _next_block(self) -> str | None:
        """The block at which all quantized runs wait, None at their end."""
        names = {run.call.name if run.call else None for run in self.quantized}
        if len(names) > 1:
            raise UserError(f"batches call blocks in different orders: {sorted(map(str, names))}")
        name = names.pop()
        if name is not None and name not in self.waiting:
            raise UserError(f"{name} is called twice in one run; such a block cannot be walked")
        return name


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors that a block hands on: one, or text and image of a joint block."""
    leaves = tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
