"""Windows of several blocks: where they end, what they learn, how a run stopped in one goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from minifloat import formats
from minifloat.calibrate import chain
from minifloat.calibrate.journal import Journal
from minifloat.calibrate.walk import Pass, Window, walk
from minifloat.errors import UserError
from minifloat.layers import QLayer
from minifloat.methods import build
from minifloat.passes.assign import assign_scales, collect, round_to_nearest
from minifloat.passes.learn import Descent, learn_rounding
from minifloat.spec import LayerSpec, QuantSpec

SPEC = LayerSpec(QuantSpec(formats.E2M1, (1, 8), formats.FP16))
NEAREST = (assign_scales(), round_to_nearest())
Glue = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """A residual block that also looks at something that is the same for all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        out: Tensor = x + self.down((self.up(x) + other.mean()).relu())
        return out


class Model(nn.Module):
    """Four blocks; `glue` makes the next one's inputs of what a block gave and the other input."""

    def __init__(self, glue: Glue | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(4)).requires_grad_(False)
        self.glue = glue

    def forward(self, x: Tensor) -> Tensor:
        other = torch.ones(())
        for block in self.layers:
            x = block(x, other)
            if self.glue is not None:
                x, other = self.glue(x, other)
        return x

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        return {f"layers.{i}": block for i, block in enumerate(self.layers)}

    def run(self, model: nn.Module, batch: Tensor) -> None:
        self(batch)


def batches(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=generator)
    return [torch.randn(16, 8, generator=generator) @ mix for _ in range(count)]


def quantized(
    model: Model, passes: tuple[Pass, ...], **where: Any
) -> tuple[dict[str, Tensor], float]:
    """Codes and scales of all layers, and the squared error of the output over the batches."""
    inputs = where.pop("inputs", batches())
    expected = [model(x) for x in inputs]
    names = [f"layers.{i}.{side}" for i in range(4) for side in ("up", "down")]
    for _ in walk(model, model, inputs, dict.fromkeys(names, SPEC), passes, **where):
        pass
    error = sum(float((model(x) - y).square().sum()) for x, y in zip(inputs, expected, strict=True))
    return dict(model.state_dict()), error


def learning(**settings: Any) -> tuple[Pass, ...]:
    return (collect(), assign_scales(), learn_rounding(**{"steps": 20, "lr": 0.1} | settings))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def seen(model: Model, **where: Any) -> list[list[str]]:
    """The layers of every window."""
    found: list[list[str]] = []
    quantized(model, (lambda window: found.append(list(window.layers)), *NEAREST), **where)
    return found


def test_windows_hold_the_blocks_asked_for() -> None:
    sizes = {(1, 0): [2] * 4, (2, 0): [4, 4], (4, 0): [8], (3, 0): [6, 2], (2, 1): [4, 4, 4, 2]}
    for (width, overlap), expected in sizes.items():
        assert [len(w) for w in seen(Model(), width=width, overlap=overlap)] == expected


def test_a_window_ends_where_the_model_computes_and_is_then_as_one_block() -> None:
    def glue(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return x * 0.5, other

    assert [len(w) for w in seen(Model(glue), width=4)] == [2] * 4
    assert same(
        quantized(Model(glue), learning())[0], quantized(Model(glue), learning(), width=4)[0]
    )


@pytest.mark.parametrize(
    ("glue", "message"),
    [
        (lambda x, other: (x, x.mean()), r"computes an input of layers\.1"),
        (lambda x, other: (x.mul_(0.5), other), r"writes into the output of layers\.0"),
    ],
)
def test_a_model_that_looks_at_an_unfinished_output_is_refused(glue: Glue, message: str) -> None:
    quantized(Model(glue), NEAREST)
    with pytest.raises(UserError, match=message):
        quantized(Model(glue), NEAREST, width=2)


def test_without_learning_windows_change_nothing() -> None:
    alone = quantized(Model(), NEAREST)
    for width, overlap in ((2, 0), (4, 0), (3, 2)):
        assert same(alone[0], quantized(Model(), NEAREST, width=width, overlap=overlap)[0])


def test_a_window_is_what_its_blocks_are_in_the_model() -> None:
    model, inputs = Model(), batches(2)
    expected = [model(x) for x in inputs]

    def check(window: Window) -> None:
        for index, y in enumerate(expected):
            assert torch.equal(window.forward(index), y)
            assert torch.equal(window.targets[index], y)

    quantized(model, (check, *NEAREST), width=4, inputs=inputs)


@pytest.mark.parametrize("lr", [0.1, 1e4])
def test_a_window_is_never_worse_than_rounding_to_nearest(lr: float) -> None:
    single = batches(1)  # learned from and judged on
    _, nearest = quantized(Model(), NEAREST, inputs=single)
    _, learned = quantized(Model(), learning(lr=lr, steps=20), inputs=single, width=4)
    assert learned <= nearest


def test_blocks_that_learn_together_make_up_for_each_other() -> None:
    learned = learning(steps=400, start="gptq")
    alone, together = (quantized(Model(), learned, width=width)[1] for width in (1, 4))
    assert together < alone


def test_a_window_keeps_the_activations_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradients that it would have with all of them, and stand-ins for parameters gone."""

    def learn(window: Window) -> tuple[dict[str, Tensor], int]:
        soft = {}
        for name, work in window.layers.items():
            soft[f"{window.path(name)}.weight"] = work.weight().clone().requires_grad_()
        call, kept = window.calls[0], [0]

        def keep(x: Tensor) -> Tensor:
            kept[0] += x.numel()
            return x

        with torch.enable_grad(), saved_tensors_hooks(keep, lambda x: x):
            output = functional_call(window.block, soft, call.args, call.kwargs)
            before = kept[0]
            (output - window.targets[0] - 1).square().sum().backward()
        return {name: torch.as_tensor(w.grad) for name, w in soft.items()}, before

    def compare(window: Window) -> None:
        lean, few = learn(window)
        with monkeypatch.context() as patched:
            patched.setattr(
                chain, "_recomputed", lambda block, args, kwargs: block(*args, **kwargs)
            )
            full, many = learn(window)
        assert same(lean, full)
        assert few < many / 3

    quantized(Model(), (compare, *NEAREST), width=4)


def stopped(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let learning fail at its so many-th step, as if it were killed there."""
    original, count = Descent._agree, [0]

    def agree(self: Descent, soft: Any) -> None:
        count[0] += 1
        if count[0] == at:
            raise KeyboardInterrupt
        original(self, soft)

    monkeypatch.setattr(Descent, "_agree", agree)


@pytest.mark.parametrize("start", ["nearest", "gptq"])
@pytest.mark.parametrize(("width", "overlap"), [(1, 0), (2, 0), (2, 1)])
def test_a_run_stopped_in_the_middle_of_learning_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, width: int, overlap: int
) -> None:
    shape = {"width": width, "overlap": overlap}
    whole, error = quantized(Model(), learning(start=start), **shape)
    for again, at in ((False, 30), (True, 5)):  # within the 20 steps of the second window, twice
        with monkeypatch.context() as patched:
            stopped(at, patched)
            journal = Journal(tmp_path, {}, resume=again, every=0)
            with pytest.raises(KeyboardInterrupt):
                quantized(Model(), learning(start=start), journal=journal, **shape)
        assert len(list(tmp_path.glob("*.draft"))) == 1
        assert len(list(tmp_path.glob("*.safetensors"))) == width - overlap
    journal = Journal(tmp_path, {}, resume=True)
    found = quantized(Model(), learning(start=start), journal=journal, **shape)
    assert found[1] == error
    assert same(found[0], whole)
    assert not list(tmp_path.glob("*.draft"))


def test_half_a_window_on_disk_counts_as_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {}, resume=False)
    quantized(Model(), NEAREST, journal=journal, width=2)
    (tmp_path / "layers.1.safetensors").unlink()
    model = Model()
    assert journal.restore(["layers.0", "layers.1"], model) is None
    assert not any(isinstance(module, QLayer) for module in model.modules())


def test_a_window_is_wider_than_its_overlap() -> None:
    with pytest.raises(UserError, match="less than the window"):
        build("fp4dit", {"window": "2", "overlap": "2"})
