"""State-space models through the walk: what is packed, what is kept and why, and that it still works."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn

import minifloat  # noqa: F401  registers with transformers
from minifloat.calibrate.line import tensors
from minifloat.calibrate.stats import quantizable
from minifloat.calibrate.walk import walk
from minifloat.export.native import save
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.llama import LlamaAdapter
from minifloat.models.mamba import MambaAdapter
from tests.models import tiny_lm

MAMBAS = [
    "Mamba",
    "Mamba2",
    "FalconMamba",
    "Jamba",
    "Bamba",
    "FalconH1",
    "Zamba2",
    "NemotronH",
    "GraniteMoeHybrid",
]
pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn


def tiny(family: str) -> nn.Module:
    return tiny_lm.build(family).float()


def batches() -> list[torch.Tensor]:
    return list(torch.randint(3, 60, (4, 12), generator=torch.Generator().manual_seed(1)).split(2))


def w8a8() -> Any:
    """Nearest INT8 weights and tokens."""
    settings = {"weight": "int8", "activation": "int8", "group_size": "-1"}
    return build("zeroquant-fp", settings | {"solver": "nearest", "rank": "0", "search": "false"})


def test_families_are_told_apart() -> None:
    assert all(MambaAdapter.accepts(tiny(family)) for family in MAMBAS)
    assert not MambaAdapter.accepts(tiny("Llama"))


@pytest.mark.parametrize("family", MAMBAS)
def test_blocks_in_turn_are_the_model(family: str) -> None:
    model, adapter = tiny(family), MambaAdapter()
    *_, last = adapter.blocks(model).values()
    expected: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda *call: expected.append(tensors(call[2])[0]))
    with torch.no_grad():
        for batch in batches():
            adapter.run(model, batch)
    handle.remove()
    for window in walk(model, adapter, batches(), {}, ()):
        found = [tensors(target)[0] for target in window.targets]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", MAMBAS)
def test_w8a8_is_near_the_original_and_loads(family: str, tmp_path: Any) -> None:
    model, method = tiny(family), w8a8()
    with torch.no_grad():
        before = model(batches()[0], use_cache=False).logits
        report = quantize(model, method, batches(), adapter=MambaAdapter())
        after = model(batches()[0], use_cache=False).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    parameters = {name for name, _ in tiny(family).named_parameters()}
    assert {row["name"] for row in report["ledger"]} == parameters
    save(model, method.plan, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, experts_implementation="eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded(batches()[0], use_cache=False).logits, after)


@pytest.mark.parametrize("family", ["Mamba", "FalconMamba", "Jamba"])
def test_a_weight_that_the_model_reads_itself_is_kept(family: str) -> None:
    """Mamba's mixer multiplies with dt_proj.weight: a packed layer there would give it bytes."""
    model = tiny(family)
    name, block = next(iter(MambaAdapter().blocks(model).items()))
    layers = {layer.rpartition(".")[2] for layer in quantizable(block, name)}
    assert {"in_proj", "x_proj", "out_proj"} <= layers
    assert "dt_proj" not in layers
    report = quantize(model, w8a8(), batches(), adapter=MambaAdapter())
    reasons = {row["name"].rpartition("mixer.")[2]: row["reason"] for row in report["ledger"]}
    kept = {name.rpartition("mamba.")[2]: reason for name, reason in reasons.items()}
    kept = {name.rpartition(".0.")[2] or name: reason for name, reason in kept.items()}
    assert "never calls" in kept["dt_proj.weight"]
    assert "convolutions" in kept["conv1d.weight"]
    assert "state spaces" in kept["A_log"]
    assert "state spaces" in kept["D"]


def test_zamba_s_shared_transformer_is_walked_around() -> None:
    model = tiny("Zamba2")
    quantize(model, w8a8(), batches(), adapter=MambaAdapter())
    packed = [name for name, module in model.named_modules() if isinstance(module, QLinear)]
    assert packed
    assert not any("shared_transformer" in name for name in packed)


def test_ledger_says_that_fused_experts_are_kept() -> None:
    model = tiny("Mixtral")
    report = quantize(model, w8a8(), batches(), adapter=LlamaAdapter())
    rows = {row["name"]: row for row in report["ledger"]}
    row = rows["model.layers.0.mlp.experts.gate_up_proj"]
    assert row["status"] == "kept"
    assert "3-D" in row["reason"]
    assert row["bytes"] == 4 * row["parameters"]
