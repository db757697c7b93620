"""The ledger accounts for everything, and void results fail the run with the list."""

from typing import Any

import pytest
import torch
from torch import nn

from minifloat.calibrate.walk import Window
from minifloat.errors import UserError
from minifloat.guard import refuse_void
from minifloat.method import Method, quantize
from minifloat.methods import build
from tests.models import tiny_lm

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn
NEAREST = build("zeroquant-fp", {"solver": "nearest", "rank": "0", "search": "false"})
TOKENS = [torch.arange(3, 19)[None]]


def tiny() -> nn.Module:
    return tiny_lm.build("Llama").float()


def quantized(*after: Any) -> dict[str, Any]:
    """A run with passes put before rounding and behind it."""
    passes = (*NEAREST.passes, *after)
    return quantize(tiny(), Method("test", "", NEAREST.plan, passes), TOKENS)


def spoil(value: float) -> Any:
    """A pass that puts one scale of every layer of attention at `value`."""

    def apply(window: Window) -> None:
        for name, work in window.layers.items():
            if "self_attn" in name:
                assert work.q is not None
                work.q.scale.stored[0, 0] = value

    return apply


def test_each_parameter_is_accounted_for() -> None:
    report = quantized()
    shapes = {name: list(p.shape) for name, p in tiny().named_parameters()}
    assert {row["name"]: row["shape"] for row in report["ledger"]} == shapes
    for row in report["ledger"]:
        if row["status"] == "kept":
            assert row["reason"]
            continue
        assert row["weight"].startswith("e2m1")
        assert row["samples"] == 16
        assert 0 < row["scale_min"] <= row["scale_max"] < float("inf")
        assert 0 < row["weight_sqnr"] < 60
        assert 0 < row["output_sqnr"] < 60


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_broken_scales_fail_with_the_list(value: float) -> None:
    with pytest.raises(
        UserError, match="8 tensors: scales that are zero, NaN or infinite"
    ) as found:
        quantized(spoil(value))
    for block in (0, 1):
        for layer in "qkvo":
            assert f"model.layers.{block}.self_attn.{layer}_proj.weight" in str(found.value)


def test_skipped_layers_fail_with_the_list() -> None:
    def skip(window: Window) -> None:
        for name in [name for name in window.layers if "down_proj" in name]:
            del window.layers[name]

    with pytest.raises(UserError, match="2 tensors: skipped though the plan") as found:
        quantized(skip)
    assert "model.layers.0.mlp.down_proj.weight, model.layers.1.mlp.down_proj" in str(found.value)


def test_a_plan_that_quantizes_nothing_fails() -> None:
    with pytest.raises(UserError, match="quantized nothing"):
        refuse_void([{"name": "a.weight", "status": "kept"}], {"a": None}, unseen=False)


def test_long_lists_are_cut_and_counted() -> None:
    rows = [
        {"name": f"{i}.weight", "status": "quantized", "scale_min": 0.0, "scale_max": 1.0}
        for i in range(10)
    ]
    with pytest.raises(UserError, match=r"10 tensors.*7\.weight and 2 more") as found:
        refuse_void(rows, {}, unseen=False)
    assert "8.weight" not in str(found.value)
