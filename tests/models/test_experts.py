"""Mixtures of experts: fused parameters become layers, each calibrated by the tokens it is sent."""

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import minifloat  # noqa: F401  registers with transformers
from minifloat.calibrate.stats import Hessian
from minifloat.errors import UserError
from minifloat.export.native import save
from minifloat.hf import swap_in
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.experts import ExpertLayers, fused_experts, open_experts
from minifloat.models.llama import LlamaAdapter
from minifloat.models.mamba import MambaAdapter
from minifloat.models.seam import fold_order, fold_scale
from minifloat.passes.gptq import gptq
from minifloat.plan import Plan
from minifloat.qtensor import decode, fake_quantize
from minifloat.spec import LayerSpec, QuantSpec
from tests.models import tiny_lm
from tests.models.fold_law import lively, random_map

FAMILIES = [
    "Mixtral",
    "Qwen2Moe",
    "Qwen3Moe",
    "Olmoe",
    "GraniteMoe",
    "GptOss",
    "Jamba",
    "GraniteMoeHybrid",
    "NemotronH",
]
pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn


def batches(count: int = 2, length: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(3, 60, (count, length), generator=generator).split(1))


def method(**settings: str) -> Any:
    fixed = {"weight": "int8", "activation": "int8", "group_size": "-1", "rank": "0"}
    return build("zeroquant-fp", fixed | settings)


def adapter(model: nn.Module) -> Any:
    return MambaAdapter() if MambaAdapter.accepts(model) else LlamaAdapter()


@pytest.mark.parametrize("family", FAMILIES)
def test_opened_experts_are_the_same_function(family: str) -> None:
    model, run = lively("language", family)
    with torch.no_grad():
        before = run()
        names = open_experts(model)
        after = run()
    assert names
    assert not fused_experts(model)
    # Nemotron-H sums in the type of its router, which is fp32 also here.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6 if family == "NemotronH" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_packed_saved_and_loaded(family: str, tmp_path: Any) -> None:
    model = lively("language", family)[0].float()
    with torch.no_grad():
        before = model(batches()[0], use_cache=False).logits
        open_experts(model)
        plan = method().plan
        report = quantize(model, method(), batches(), adapter=adapter(model))
        after = model(batches()[0], use_cache=False).logits
        # A token on the edge may go to another expert.
        assert 0 < float((after - before).norm() / before.norm()) < 0.3
        save(model, plan, tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(batches()[0], use_cache=False).logits, after)
    gates = [
        row for row in report["ledger"] if row["name"].endswith(("gate.weight", "router.weight"))
    ]
    reasons = {row["reason"] for row in gates if row["status"] == "kept"}
    assert reasons <= {"routers that are no linear layers stay in full precision"}
    packed = [row for row in report["ledger"] if ".experts." in row["name"]]
    statuses = {row["name"].rpartition(".")[2]: row["status"] for row in packed}
    assert statuses["weight"] == "quantized"


def test_every_token_is_counted_by_the_experts_it_is_sent_to() -> None:
    model = tiny_lm.build("Mixtral").float()
    open_experts(model)
    report = quantize(model, method(), batches(4, 16))
    for layer in (0, 1):
        rows = [r for r in report["ledger"] if f"layers.{layer}.mlp.experts" in r["name"]]
        seen = [row["samples"] for row in rows if row["name"].endswith("up.weight")]
        assert len(seen) == 4
        assert sum(seen) == 4 * 16 * 2  # two experts a token


def test_experts_that_few_tokens_reach_are_named() -> None:
    """One token visits two of four experts: all four are calibrated on weights, and say so."""
    model = tiny_lm.build("Mixtral").float()
    open_experts(model)
    with pytest.raises(UserError, match="8 tensors: experts that no calibration token reached"):
        quantize(copy.deepcopy(model), method(), batches(1, 1))
    report = quantize(model, method(), batches(1, 1), unseen=True)
    rows = [row for row in report["ledger"] if ".experts." in row["name"]]
    reasons = [row["reason"] for row in rows]
    assert len(rows) == 2 * 4 * 2
    assert all("calibrated on its weights alone" in reason for reason in reasons)
    assert sum(reason.startswith("0 tokens") for reason in reasons) == len(rows) / 2
    others = [row for row in report["ledger"] if "self_attn" in row["name"]]
    assert all(row["reason"] == "" for row in others if row["status"] == "quantized")


def test_experts_that_many_tokens_reach_are_not() -> None:
    model = tiny_lm.build("Mixtral").float()
    open_experts(model)
    report = quantize(model, method(), batches(20, 16))
    rows = [row for row in report["ledger"] if ".experts." in row["name"]]
    assert all((row["samples"] < 64) == bool(row["reason"]) for row in rows)
    assert any(row["reason"] == "" for row in rows)


def test_blind_gptq_is_rounding_to_nearest() -> None:
    """The fallback needs no branch in a solver: without a moment, feedback has nothing to say."""
    w = torch.randn(8, 24, generator=torch.Generator().manual_seed(0))
    spec = method(weight="int4").plan.rules[0][1].weight
    blind = Hessian.blind(24, w.device, rows=3)
    assert torch.equal(blind.value, torch.eye(24))
    assert blind.rows == 3
    assert torch.equal(decode(gptq(w, blind.value, spec)), fake_quantize(w, spec))


def test_static_inputs_of_an_expert_that_nothing_reached() -> None:
    model = tiny_lm.build("Mixtral").float()
    open_experts(model)
    int8 = method().plan.rules[0][1].weight
    static = QuantSpec(int8.format, (-1, -1), int8.scale)
    plan = Plan((("*", LayerSpec(weight=int8, input=static)),))
    with pytest.raises(UserError, match="no calibration input reached"):
        quantize(model, method(), batches(1, 1), plan=plan)


@pytest.mark.parametrize("family", ["Mixtral", "GptOss", "Qwen2Moe"])
def test_seams_of_opened_experts(family: str) -> None:
    model, run = lively("language", family)
    fused = LlamaAdapter().seams(model)
    open_experts(model)
    opened = LlamaAdapter().seams(model)
    assert [(s.kind, s.width, s.maps) for s in fused] == [(s.kind, s.width, s.maps) for s in opened]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        before = run()
        for seam in opened:
            if "scale" in seam.maps:
                fold_scale(model, seam, random_map(seam, "scale", generator))
            if "order" in seam.maps:
                fold_order(model, seam, random_map(seam, "order", generator))
        assert float((run() - before).abs().max() / before.abs().max()) < 1e-5


def test_a_checkpoint_of_another_model_is_refused() -> None:
    config = {"layers": {}, "rules": [], "experts": ["model.layers.0.mlp.experts"]}
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.experts"):
        swap_in(tiny_lm.build("Llama"), config | {"format_version": 2})
    with pytest.raises(UserError, match="none there"):
        swap_in(tiny_lm.build("Mixtral"), config | {"experts": ["model.layers.0.mlp"]})


def test_opened_experts_are_told_from_others() -> None:
    model = tiny_lm.build("Mixtral")
    open_experts(model)
    assert open_experts(model) == []
    assert isinstance(model.get_submodule("model.layers.0.mlp.experts"), ExpertLayers)
