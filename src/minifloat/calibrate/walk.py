"""The walk: block after block, with a full-precision and a quantized stream of activations.

Every batch runs through the model twice, side by side, and waits at each block (`runs.py`). The
quantized stream is what the finished, quantized blocks hand on; passes see it as a layer's inputs,
so that later layers make up for earlier errors. The full-precision stream gives targets.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minifloat.calibrate.chain import Chain, Step, as_one
from minifloat.calibrate.draft import Draft
from minifloat.calibrate.journal import Journal
from minifloat.calibrate.line import Line
from minifloat.calibrate.runs import Call, waiting_at
from minifloat.calibrate.shelf import Shelf
from minifloat.calibrate.stats import Hessian, Layer, input_rows, output_sqnr, quantizable, sqnr
from minifloat.calibrate.team import ALONE, Team
from minifloat.errors import UserError
from minifloat.models.adapter import Adapter
from minifloat.models.experts import is_expert
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec
from minifloat.substitute import packed_like
from minifloat.tiles import as_matrix


@dataclass
class Work:
    """One layer on its way to a packed one; passes fill the fields after `spec`, and may change it."""

    module: Layer
    spec: LayerSpec
    hessian: Hessian | None = None
    scale: Scale | None = None
    q: QTensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    input_scale: Scale | None = None
    note: str = ""  # what the ledger shall say of it

    def weight(self) -> Tensor:
        """The full-precision weight as a matrix [out, in] in float32."""
        return as_matrix(self.module.weight.detach()).float()

    def quantized_weight(self) -> Tensor:
        """What the packed layer will multiply with, low-rank branch included."""
        assert self.q is not None
        w = decode(self.q)
        if self.low_rank is None:
            return w
        up, down = (part.half().float() for part in self.low_rank)
        return w + up @ down


@dataclass
class Window:
    """What a pass works on: the layers of a block, its calls in the quantized stream, its targets.

    `calls` and `targets` have one entry a batch: the block's arguments after the quantized blocks
    before it, and its output in the full-precision model. The block may be several in a row
    (`chain.py`), whose targets are the last one's; `name` is that of the first.
    """

    name: str
    block: nn.Module
    layers: dict[str, Work]
    calls: list[Call]
    targets: list[Any]
    outcome: dict[str, dict[str, Any]] = field(default_factory=dict)
    block_sqnr: float = float("nan")
    team: Team = ALONE
    draft: Draft | None = None  # where a long pass keeps its state

    def forward(self, index: int) -> Any:
        """The block's output for batch `index`."""
        call = self.calls[index]
        return self.block(*call.args, **call.kwargs)

    def path(self, layer: str) -> str:
        """The name of a layer inside `block`, empty where the block is that layer."""
        if isinstance(self.block, Chain):
            return self.block.path(layer)
        return layer.removeprefix(self.name).removeprefix(".")

    def layers_of(self, block: str) -> dict[str, Work]:
        """The layers of one of the blocks."""
        return {n: w for n, w in self.layers.items() if n == block or n.startswith(f"{block}.")}

    def collect_hessians(self, enough: int = 0) -> None:
        """One run of the block over its quantized inputs, counting every layer's inputs.

        Experts that saw fewer than `enough` tokens are calibrated on their weights alone.
        """
        handles = []
        shared: dict[tuple[int, Any], tuple[Tensor, Hessian]] = {}
        for work in self.layers.values():
            work.hessian = None
            if getattr(work.module, "groups", 1) > 1:
                continue  # each group has inputs of its own; such layers are small
            handles.append(work.module.register_forward_pre_hook(_counter(work, shared)))
        try:
            for index in range(len(self.calls)):
                shared.clear()
                self.forward(index)
        finally:
            for handle in handles:
                handle.remove()
        self._sum_hessians()
        for name, work in self.layers.items():
            rows = 0 if work.hessian is None else work.hessian.rows
            if is_expert(name) and rows < enough:
                work.hessian = Hessian.blind(
                    work.weight().shape[1], work.module.weight.device, rows
                )
                work.note = f"{rows} tokens reached this expert: calibrated on its weights alone"

    def _sum_hessians(self) -> None:
        """Sum over the team; a layer that only others called (an expert) adds nothing."""
        if self.team.size == 1:
            return
        works = [w for w in self.layers.values() if getattr(w.module, "groups", 1) == 1]
        first: dict[int, int] = {}
        own = [first.setdefault(id(w.hessian or w), i) for i, w in enumerate(works)]
        owners = self.team.least(torch.tensor(own)).tolist()
        for index, (work, owner) in enumerate(zip(works, owners, strict=True)):
            if owner < index:
                work.hessian = works[owner].hessian
                continue
            w = work.module.weight
            found = work.hessian or Hessian(w[0].numel(), w.device)
            self.team.sum(found.total)
            found.rows = int(self.team.total(found.rows))
            work.hessian = found if found.rows else None


def _counter(
    work: Work, shared: dict[tuple[int, Any], tuple[Tensor, Hessian]]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that counts a layer's inputs; layers fed by the same tensor (q, k, v) share one.

    Static activations have no scale yet and count as they are.
    """
    spec = work.spec.input if work.spec.input is not None and work.spec.input.dynamic else None
    geometry = ("kernel_size", "stride", "padding", "dilation")
    shape = tuple(getattr(work.module, name, None) for name in geometry)

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        known = shared.get((id(x), shape))
        if known is not None and (work.hessian is None or work.hessian is known[1]):
            work.hessian = known[1]
            return
        rows = input_rows(work.module, x, spec)
        if work.hessian is None:
            work.hessian = Hessian(rows.shape[1], x.device)
        work.hessian.add(rows)
        shared[id(x), shape] = (x, work.hessian)

    return hook


Pass = Callable[[Window], None]


class Weights(Protocol):
    """Where blocks' weights come from if the model does not hold them (see `models/lazy.py`)."""

    def bring(self, block: str) -> None:
        """Load a block's weights before work on it begins."""
        ...

    def release(self, block: str) -> None:
        """Let them go after it; the journal has the packed block by then."""
        ...


@torch.no_grad()
def walk(
    model: nn.Module,
    adapter: Adapter,
    batches: Sequence[Any],
    specs: dict[str, LayerSpec | None],
    passes: Sequence[Pass],
    *,
    budget: int = 4 << 30,
    journal: Journal | None = None,
    weights: Weights | None = None,
    team: Team = ALONE,
    width: int = 1,
    overlap: int = 0,
) -> Iterator[Window]:
    """Quantize window by window, in place; yields every finished block as a window of its own.

    Args:
        model: the model; its planned layers become packed ones.
        adapter: names the blocks and runs the model.
        batches: calibration batches that the adapter can run, such as token ids [batch, length].
        specs: what the plan says of every layer inside the blocks.
        passes: what is done to each window, in order.
        budget: bytes of activations to keep in memory before spilling to disk.
        journal: keeps finished blocks on disk, and gives back those of a run that was stopped.
        weights: loads a block before its window and lets it go after; only the journal has it then.
        team: the processes that share the calibration; `batches` are this one's.
        width: blocks in a window; fewer where the model computes something between two of them.
        overlap: blocks of a window that the next one works out anew, after having served as what
            the others' outputs are for.
    """
    blocks = adapter.blocks(model)
    functions = [functools.partial(adapter.run, model, batch) for batch in batches]
    bring = weights.bring if weights is not None else lambda name: None
    with waiting_at(blocks, functions * 2) as runs:
        full, quantized = runs[: len(batches)], runs[len(batches) :]
        line = Line(blocks, full, quantized, Shelf(budget), team, bring)
        while line.reach(width):
            window = _window(line.steps, specs, team)
            done = line.steps[: max(1, width - overlap)]
            outcomes = _finish(model, window, [step.name for step in done], passes, journal)
            del window  # its layers' full-precision weights and statistics go
            for step, outcome in zip(done, outcomes, strict=True):
                block = model.get_submodule(step.name)  # a new one if the block is a layer itself
                found = Window(step.name, block, {}, step.calls, step.targets, outcome)
                found.block_sqnr = line.finish(step, block)
                found.calls.clear()
                yield found
                found.targets.clear()
                if weights is not None:
                    weights.release(step.name)
    if line.waiting:
        raise UserError(
            f"calibration never reached {line.waiting[0]} ({len(line.waiting)} such blocks), "
            "so nothing is known of their inputs; use batches that reach them"
        )


def _finish(
    model: nn.Module,
    window: Window,
    names: Sequence[str],
    passes: Sequence[Pass],
    journal: Journal | None,
) -> list[dict[str, dict[str, Any]]]:
    """Leave the packed layers of some blocks in the model: worked out, or given back; their outcomes."""
    known = None if journal is None else journal.restore(names, model)
    if known is not None:
        return known
    window.draft = None if journal is None else journal.draft(window.name)
    for apply in passes:
        apply(window)
    outcomes = [replace_layers(model, window.layers_of(name)) for name in names]
    window.layers.clear()
    if journal is not None and window.team.rank == 0:
        journal.keep(names, model, outcomes)
    return outcomes


def _window(steps: Sequence[Step], specs: dict[str, LayerSpec | None], team: Team) -> Window:
    """What passes see of some blocks in a row."""
    layers = {}
    for step in steps:
        for name, module in quantizable(step.block, step.name).items():
            spec = specs.get(name)
            if spec is not None and spec.weight is not None:
                layers[name] = Work(module, spec)
    block, calls = as_one(steps)
    window = Window(steps[0].name, block, layers, calls, steps[-1].targets, team=team)
    check_finite(window)
    return window


def check_finite(window: Window) -> None:
    """Raise a `UserError` if a layer's weight holds NaN or Inf."""
    for name, work in window.layers.items():
        bad = int((~torch.isfinite(work.module.weight)).sum())
        if bad:
            raise UserError(
                f"{name}.weight holds {bad} NaN or Inf; mend the checkpoint or keep the layer "
                "with a plan rule that maps it to null"
            )


def replace_layers(model: nn.Module, works: dict[str, Work]) -> dict[str, dict[str, Any]]:
    """Put packed layers in the place of full-precision ones; returns what became of them."""
    outcome = {}
    for name, work in works.items():
        assert work.q is not None, f"no pass quantized {name}"
        w, w_hat = work.weight(), work.quantized_weight()
        scales = work.q.scale.values(work.q.spec)
        seen = work.hessian and output_sqnr(w, w_hat, work.hessian.value)
        outcome[name] = {
            "weight_sqnr": sqnr(w, w_hat.sub_(w)),
            "output_sqnr": seen,
            "samples": work.hessian and work.hessian.rows,
            "scale_min": float(scales.min()),
            "scale_max": float(scales.max()),
            "zeros_before": int((w == 0).sum()),
            "histogram": _histogram(work.q),
            "reason": work.note,
        }
        bias = getattr(work.module, "bias", None)  # an embedding has none
        rank = 0 if work.low_rank is None else work.low_rank[1].shape[0]
        layer = packed_like(work.module, work.spec, rank)
        layer.fill(work.q, bias=bias, low_rank=work.low_rank, input_scale=work.input_scale)
        model.set_submodule(name, layer)
    return outcome


def _histogram(q: QTensor) -> list[list[float]]:
    """How many weights lie on each value of the grid, both zeros as one."""
    size = 2**q.spec.format.bits
    parts = torch.split(q.codes.reshape(-1), 1 << 18)  # bincount makes eight bytes of each
    codes = torch.stack([torch.bincount(part, minlength=size) for part in parts]).sum(0)
    counts: dict[float, int] = {}
    for value, count in zip(q.spec.format.values, codes.tolist(), strict=True):
        if not math.isnan(value):
            counts[value + 0.0] = counts.get(value + 0.0, 0) + count
    return [[value, counts[value]] for value in sorted(counts)]
