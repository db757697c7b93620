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
from torch.utils._pytree import tree_leaves

from minifloat.calibrate.journal import Journal
from minifloat.calibrate.runs import Call, Run, waiting_at
from minifloat.calibrate.shelf import Shelf
from minifloat.calibrate.stats import Hessian, Layer, input_rows, output_sqnr, quantizable, sqnr
from minifloat.calibrate.team import ALONE, Team
from minifloat.errors import UserError
from minifloat.layers import packed_like
from minifloat.models.adapter import Adapter
from minifloat.models.experts import is_expert
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec
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
    before it, and its output in the full-precision model.
    """

    name: str
    block: nn.Module
    layers: dict[str, Work]
    calls: list[Call]
    targets: list[Any]
    outcome: dict[str, dict[str, Any]] = field(default_factory=dict)
    block_sqnr: float = float("nan")
    team: Team = ALONE

    def forward(self, index: int) -> Any:
        """The block's output for batch `index`."""
        call = self.calls[index]
        return self.block(*call.args, **call.kwargs)

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
) -> Iterator[Window]:
    """Quantize block by block, in place; yields every finished window.

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
    """
    blocks = adapter.blocks(model)
    shelf = Shelf(budget)
    functions = [functools.partial(adapter.run, model, batch) for batch in batches]
    with waiting_at(blocks, functions * 2) as runs:
        full, quantized = runs[: len(batches)], runs[len(batches) :]
        waiting = list(blocks)
        while (name := _next_block(full, waiting)) is not None:
            waiting.remove(name)
            if weights is not None:
                weights.bring(name)
            window = _window(name, blocks[name], specs, full, quantized, shelf)
            window.team = team
            _finish(model, window, passes, journal)
            window.block = model.get_submodule(name)  # a new one if the block is a layer itself
            window.block_sqnr = _advance(window, full, quantized, shelf)
            yield window
            window.targets.clear()
            if weights is not None:
                weights.release(name)
    if waiting:
        raise UserError(
            f"calibration never reached {waiting[0]} ({len(waiting)} such blocks), "
            "so nothing is known of their inputs; use batches that reach them"
        )


def _finish(
    model: nn.Module, window: Window, passes: Sequence[Pass], journal: Journal | None
) -> None:
    """Leave packed layers in the model and their outcome in the window: worked out, or given back."""
    outcome = None if journal is None else journal.restore(window.name, model)
    if outcome is not None:
        window.outcome.update(outcome)
        window.layers.clear()
        return
    for apply in passes:
        apply(window)
    _replace(model, window)
    if journal is not None and window.team.rank == 0:
        journal.keep(window.name, model, window.outcome)


def _next_block(runs: Sequence[Run], waiting: list[str]) -> str | None:
    """The block at which all runs wait, None at their end."""
    names = {run.call.name if run.call else None for run in runs}
    if len(names) > 1:
        raise UserError(f"batches call blocks in different orders: {sorted(map(str, names))}")
    name = names.pop()
    if name is not None and name not in waiting:
        raise UserError(f"{name} is called twice in one run; such a block cannot be walked")
    return name


def _window(
    name: str,
    block: nn.Module,
    specs: dict[str, LayerSpec | None],
    full: Sequence[Run],
    quantized: Sequence[Run],
    shelf: Shelf,
) -> Window:
    """The window of the block at which all runs wait."""
    layers = {}
    for full_name, module in quantizable(block, name).items():
        spec = specs.get(full_name)
        if spec is not None and spec.weight is not None:
            layers[full_name] = Work(module, spec)
    window = Window(name, block, layers, [run.call for run in quantized if run.call], [])
    _check_finite(window)
    for run in full:
        assert run.call is not None
        window.targets.append(shelf.keep(block(*run.call.args, **run.call.kwargs)))
    return window


def _advance(window: Window, full: Sequence[Run], quantized: Sequence[Run], shelf: Shelf) -> float:
    """Hand the outputs of the quantized block and the targets to their runs; returns its SQNR in dB."""
    power = error = torch.zeros((), dtype=torch.float64)
    for index, run in enumerate(quantized):
        output = shelf.keep(window.forward(index))
        for found, target in zip(tensors(output), tensors(window.targets[index]), strict=True):
            power = power + target.double().square().sum()
            error = error + (target - found).double().square().sum()
        run.resume(output)
        full[index].resume(window.targets[index])
    window.calls.clear()
    signal, noise = window.team.total(float(power)), window.team.total(float(error))
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors that a block hands on: one, or text and image of a joint block."""
    leaves = tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check_finite(window: Window) -> None:
    for name, work in window.layers.items():
        bad = int((~torch.isfinite(work.module.weight)).sum())
        if bad:
            raise UserError(
                f"{name}.weight holds {bad} NaN or Inf; mend the checkpoint or keep the layer "
                "with a plan rule that maps it to null"
            )


def _replace(model: nn.Module, window: Window) -> None:
    """Put packed layers in the place of the linear ones, and write down what became of them."""
    for name, work in window.layers.items():
        assert work.q is not None, f"no pass quantized {name}"
        w, w_hat = work.weight(), work.quantized_weight()
        scales = work.q.scale.values(work.q.spec)
        seen = work.hessian and output_sqnr(w, w_hat, work.hessian.value)
        window.outcome[name] = {
            "weight_sqnr": sqnr(w, w_hat.sub_(w)),
            "output_sqnr": seen,
            "samples": work.hessian and work.hessian.rows,
            "scale_min": float(scales.min()),
            "scale_max": float(scales.max()),
            "zeros_before": int((w == 0).sum()),
            "histogram": _histogram(work.q),
            "reason": work.note,
        }
        bias = None if work.module.bias is None else work.module.bias.detach()
        rank = 0 if work.low_rank is None else work.low_rank[1].shape[0]
        layer = packed_like(work.module, work.spec, rank)
        layer.fill(work.q, bias=bias, low_rank=work.low_rank, input_scale=work.input_scale)
        model.set_submodule(name, layer)
    window.layers.clear()


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
