"""Runs that wait at blocks: any wiring, any order of errors, no thread left behind."""

import threading

import pytest
import torch
from torch import nn

from minifloat.calibrate.runs import waiting_at
from minifloat.errors import UserError
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods import build


class Skipping(nn.Module):
    """Two layers down, two up, a skip over the middle, and a layer that is no block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers[0](x)
        middle = self.layers[1](self.layers[2](first).relu())
        out: torch.Tensor = self.last(torch.cat([first, middle], 1))
        return out


def test_runs_advance_together_and_give_the_models_output() -> None:
    model = Skipping()
    inputs = [torch.randn(2, 4) for _ in range(3)]
    expected = [model(x) for x in inputs]
    blocks = {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    results: list[torch.Tensor] = []
    functions = [lambda x=x: results.append(model(x)) for x in inputs]
    order = []
    with waiting_at(blocks, functions) as runs:
        while runs[0].call is not None:
            assert len({run.call and run.call.name for run in runs}) == 1
            order.append(runs[0].call.name)
            for run in runs:
                assert run.call is not None
                run.resume(blocks[order[-1]](*run.call.args, **run.call.kwargs))
    assert order == ["layers.0", "layers.2", "layers.1"]
    assert all(torch.equal(one, two) for one, two in zip(results, expected, strict=True))
    assert not results[0].requires_grad


def test_abandoned_runs_end_and_blocks_are_themselves_again() -> None:
    model = Skipping()
    before = threading.active_count()
    with (
        pytest.raises(KeyboardInterrupt),
        waiting_at({"0": model.layers[0]}, [lambda: model(torch.ones(1, 4))] * 5),
    ):
        assert threading.active_count() == before + 5
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert "forward" not in vars(model.layers[0])


def test_an_error_between_blocks_is_raised_where_the_run_is_resumed() -> None:
    model = Skipping()
    block = model.layers[1]
    with (
        pytest.raises(RuntimeError, match="Sizes of tensors"),
        waiting_at({"1": block}, [lambda: model(torch.ones(1, 4))]) as runs,
    ):
        runs[0].resume(torch.ones(3, 4))


class LayersAreBlocks:
    """An adapter that names bare layers."""

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(model, Skipping)
        return {f"layers.{i}": layer for i, layer in enumerate(model.layers)}

    def run(self, model: nn.Module, batch: torch.Tensor) -> None:
        model(batch)


def test_a_block_may_be_a_layer_and_its_successors_see_it_quantized() -> None:
    model = Skipping()
    method = build("zeroquant-fp", {"weight": "int3", "rank": "0", "activation": "none"})
    batches = [torch.randn(16, 4) for _ in range(2)]
    report = quantize(model, method, batches, adapter=LayersAreBlocks())
    assert all(isinstance(layer, QLinear) for layer in model.layers)
    assert all(value < 60 for _, value in report["block_sqnr"])
    kept = {row["name"] for row in report["ledger"] if row["status"] == "kept"}
    assert kept == {"last.weight", "last.bias", *(f"layers.{i}.bias" for i in range(3))}


def test_blocks_that_are_never_reached_or_reached_twice_are_named() -> None:
    class Twice(Skipping):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers[0](self.layers[0](x))
            return out

    method = build("zeroquant-fp", {"rank": "0"})
    with pytest.raises(UserError, match=r"layers\.0 is called twice"):
        quantize(Twice(), method, [torch.ones(2, 4)], adapter=LayersAreBlocks())

    class Once(Skipping):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layers[0](x)
            return out

    with pytest.raises(UserError, match=r"never reached layers\.1 \(2 such"):
        quantize(Once(), method, [torch.ones(2, 4)], adapter=LayersAreBlocks())
