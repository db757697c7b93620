"""How much memory a run will take, before it starts.

An estimate of the parts that grow with the model and the calibration; what is left of the limit goes
to activations, and the rest of them to disk.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from minifloat.calibrate.stats import quantizable
from minifloat.errors import UserError
from minifloat.jobs.job import Task
from minifloat.memory import resident
from minifloat.models.adapter import Adapter
from minifloat.models.lazy import Lazy
from minifloat.models.outside import outside_layers

USUAL_BUDGET = 4 << 30  # of activations, where nobody says
_SPARE = 300 << 20  # allocator, threads, small tensors
_LEAST = 256 << 20  # activations below this would live on disk alone


@dataclass(frozen=True)
class Estimate:
    """Bytes of a run block by block.

    Attributes:
        start: of the process with everything outside the blocks.
        block: of the largest block, as stored and packed.
        work: on the largest layer in float32, in it or outside: weight, quantized weight, errors.
        hessians: of the largest block's layers; the factor of the largest where it is inverted.
        inside: activations inside a block for one calibration batch.
    """

    start: int
    block: int
    work: int
    hessians: int
    inside: int

    @property
    def least(self) -> int:
        """What the run cannot do without."""
        return self.start + self.block + self.work + self.hessians + self.inside + _SPARE

    def activations(self, limit: int) -> int:
        """Bytes left for activations between blocks.

        Raises:
            UserError: the limit is too low for the run.
        """
        left = limit - self.least
        if left < _LEAST:
            need = self.least + _LEAST
            raise UserError(
                f"--memory {_gib(limit)} is not enough: about {_gib(need)} are needed ({self}); "
                "shorter windows (--length) and a method without Hessians need less"
            )
        return left

    def __str__(self) -> str:
        parts = {
            "outside the blocks": self.start,
            "largest block": self.block,
            "work on a layer": self.work,
            "Hessians": self.hessians,
            "activations inside a block": self.inside,
        }
        return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())


def estimate(
    model: nn.Module,
    adapter: Adapter,
    lazy: Lazy,
    rows: int,
    named: Collection[str] = (),
    inverts: bool = True,
) -> Estimate:
    """The estimate of a run.

    Args:
        model, adapter, lazy: what is walked, and its blocks in their files.
        rows: tokens of a batch.
        named: layers outside the blocks that are worked on too.
        inverts: the method inverts Hessians.
    """
    blocks = adapter.blocks(model)
    name = max(blocks, key=lazy.bytes_of)
    layers = [
        (m.weight.shape[0], m.weight[0].numel()) for m in quantizable(blocks[name], "").values()
    ]
    columns = {inputs for _, inputs in layers}
    outside = {holder for layer, holder in outside_layers(model).items() if layer in named}
    weights = [model.get_submodule(layer).weight.numel() for layer in outside]  # type: ignore[operator]
    return Estimate(
        start=resident(),
        block=lazy.bytes_of(name) * 3 // 2,
        work=4 * 4 * max([*weights, *(out * inputs for out, inputs in layers)]),
        hessians=4 * (2 * sum(n * n for n in columns) + 3 * inverts * max(columns) ** 2),
        inside=4 * rows * sum(out + inputs for out, inputs in layers),
    )


def budget(task: Task, model: nn.Module, adapter: Adapter, lazy: Lazy, rows: int) -> int:
    """Bytes for activations between blocks: what the rest of the run leaves of the task's limit."""
    named = [pattern for pattern, _ in task.plan.rules]
    found = estimate(model, adapter, lazy, rows, named, task.method.inverts)
    limit = task.job.memory
    left = USUAL_BUDGET if limit is None else found.activations(limit)
    task.say(f"block by block: {found}; {left / 2**30:.2f} GiB for activations")
    return left


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def bytes_of(text: str) -> int:
    """A size such as 8GB, 7.5 GiB or 500M."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    try:
        if found is None:
            raise ValueError
        number, unit, binary = float(found[1]), "KMGT".find(found[2].upper()) + 1, found[3]
    except ValueError:
        raise UserError(f"--memory takes a size such as 8GB, not {text!r}") from None
    base = 1024.0 if binary else 1000.0
    return round(number * base ** (unit if found[2] else 0))
