"""The driver: a method is a plan and passes; `quantize` walks a model with them and keeps the ledger."""

import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from minifloat.calibrate.journal import Journal
from minifloat.calibrate.stats import quantizable
from minifloat.calibrate.team import ALONE, Team
from minifloat.calibrate.walk import Pass, Weights, Window, walk
from minifloat.errors import UserError
from minifloat.guard import refuse_void
from minifloat.kernels.table import pick, why
from minifloat.layers import QLayer
from minifloat.memory import resident
from minifloat.models.adapter import Adapter
from minifloat.models.experts import closed_layers, fused_name, open_planned
from minifloat.models.families import adapt
from minifloat.models.kept import why_kept
from minifloat.models.outside import outside_layers
from minifloat.outside import quantize_outside, specs_outside
from minifloat.plan import Plan
from minifloat.siblings import make_ready
from minifloat.spec import LayerSpec

Progress = Callable[[Iterable[Window], int], Iterable[Window]]


@dataclass(frozen=True)
class Method:
    """A published system as a plan and a list of passes."""

    name: str
    paper: str
    plan: Plan
    passes: tuple[Pass, ...]
    window: int = 1  # blocks that are worked on together
    overlap: int = 0  # of them, those that the next window works out anew
    inverts: bool = True  # a pass inverts Hessians: of use for the estimate of memory

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window:
            raise UserError(
                f"a window of {self.window} blocks cannot share {self.overlap} with the next; the "
                "overlap is 0 or more and less than the window"
            )


def quantize(
    model: nn.Module,
    method: Method,
    batches: Sequence[Any],
    *,
    adapter: Adapter | None = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
    budget: int = 4 << 30,
    journal: Journal | None = None,
    weights: Weights | None = None,
    team: Team = ALONE,
    apart: Mapping[str, str] | None = None,
    unseen: bool = False,
) -> dict[str, Any]:
    """Quantize a model in place and return the report of the run.

    Args:
        model: the full-precision model.
        method: what to do.
        batches: calibration batches.
        adapter: how to walk the model; chosen by its shape if None, and then layers that see a
            concatenation are split and fused experts opened.
        plan: takes the place of the method's own plan.
        progress: wraps the windows as they finish (their number is the second argument).
        budget: bytes of activations to keep in memory.
        journal: where finished blocks are kept until the run ends (see `calibrate/journal.py`).
        weights: of a model that holds none itself (see `models/lazy.py`); its blocks are then left
            empty in the end, and lie in the journal.
        team: the processes that share the calibration; `batches` are this one's part.
        apart: modules that are not walked, with the reason for the ledger.
        unseen: accept experts that no calibration token reached; they are calibrated on their
            weights alone.

    Returns:
        The report: ledger of every parameter, sizes, plan and times (see `report.py`).

    Raises:
        UserError: a mistake in what was given; or a void result, with the list of its layers.
    """
    if not batches:
        raise UserError("calibration needs at least one batch")
    plan = method.plan if plan is None else plan
    if adapter is None:
        open_planned(model, plan)
        adapter = adapt(model)
    blocks = adapter.blocks(model)
    names = [name for prefix, block in blocks.items() for name in quantizable(block, prefix)]
    closed = [name for layers in closed_layers(model).values() for name in layers]
    resolved = plan.resolve(names + closed, outside_layers(model))
    outside = specs_outside(model, resolved)
    specs = {name: resolved[name] for name in names} | outside
    before = {name: (p.shape, p.numel(), p.element_size()) for name, p in model.named_parameters()}
    started = time.perf_counter()
    where: Any = {"budget": budget, "journal": journal, "weights": weights, "team": team}
    where |= {"width": method.window, "overlap": method.overlap}
    windows: Iterable[Window] = walk(model, adapter, batches, specs, method.passes, **where)
    outcome: dict[str, dict[str, Any]] = {}
    block_sqnr: list[tuple[str, float]] = []
    memory: list[tuple[str, float]] = []
    for window in progress(windows, len(blocks)) if progress else windows:
        outcome.update(window.outcome)
        block_sqnr.append((window.name, window.block_sqnr))
        memory.append((window.name, resident() / 2**20))
    outcome |= quantize_outside(model, outside)
    make_ready(model)
    ledger = _ledger(model, before, specs, outcome, apart or {})
    refuse_void(ledger, specs, unseen=unseen)
    return {
        "minifloat": version("minifloat"),
        "method": method.name,
        "paper": method.paper,
        "plan": _executed(model, plan, outcome).to_json(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "ledger": ledger,
        "size": {
            "before": sum(count * size for _, count, size in before.values()),
            "theory": round(sum(row["parameters"] * row["bits"] / 8 for row in ledger)),
        },
        "zeros": _zeros(ledger),
        "block_sqnr": block_sqnr,
        "memory": memory,
        "seconds": {"quantize": time.perf_counter() - started},
        "processes": team.size,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _executed(model: nn.Module, plan: Plan, outcome: Iterable[str]) -> Plan:
    """The plan with the choices that passes made: a rule for each layer that differs from it."""
    rules = []
    for name in outcome:
        layer = model.get_submodule(name)
        assert isinstance(layer, QLayer)
        if layer.spec != plan.spec_of(name):
            rules.append((name, layer.spec))
    return Plan((*rules, *plan.rules))


def _ledger(
    model: nn.Module,
    before: dict[str, tuple[torch.Size, int, int]],
    specs: dict[str, LayerSpec | None],
    outcome: dict[str, dict[str, Any]],
    apart: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row for every parameter that the model had: quantized how, or kept and why."""
    rows = []
    for name, (shape, count, size) in before.items():
        row: dict[str, Any] = {"name": name, "shape": list(shape), "parameters": count}
        layer_name = name.removesuffix(".weight")
        if layer_name in outcome and name.endswith(".weight"):
            layer = model.get_submodule(layer_name)
            assert isinstance(layer, QLayer)
            stored = sum(b.numel() * b.element_size() for b in layer.buffers())
            spec = layer.spec
            row |= {"status": "quantized", "reason": "", "weight": str(spec.weight)}
            row |= {"input": None if spec.input is None else str(spec.input)}
            row |= {"bits": _theory_bits(layer), "bytes": stored} | outcome[layer_name]
            device = "cpu" if layer.weight.is_meta else layer.weight.device.type
            row["kernel"] = pick(layer.op, spec, device).name
            row["kernel_reason"] = why(layer.op, spec, device)
            if fused := fused_name(model, layer_name):
                row["fused"] = fused
        else:
            module = model.get_submodule(name.rpartition(".")[0])
            reason = next((why for tower, why in apart.items() if name.startswith(f"{tower}.")), "")
            reason = reason or why_kept(name, module, layer_name in specs)
            row |= {"status": "kept", "reason": reason}
            row |= {"weight": None, "input": None, "bits": 8.0 * size, "bytes": count * size}
        rows.append(row)
    return rows


def _zeros(ledger: list[dict[str, Any]]) -> dict[str, float]:
    """The share of quantized weights that were zero, and that are: sparsity that a format brings."""
    done = [row for row in ledger if row["status"] == "quantized"]
    weights = sum(row["parameters"] for row in done)
    after = sum(count for row in done for value, count in row["histogram"] if value == 0)
    return {"before": sum(row["zeros_before"] for row in done) / weights, "after": after / weights}


def _theory_bits(layer: QLayer) -> float:
    """Bits a weight: codes, scales, and the low-rank branch in 16 bits."""
    assert layer.spec.weight is not None
    shape = layer.shape
    extra = 16 * layer.rank * (shape[0] + shape[1]) / (shape[0] * shape[1])
    return layer.spec.weight.bits_per_value(shape) + extra
