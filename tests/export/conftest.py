"""A small Llama quantized to nearest by any plan, as a checkpoint folder of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minifloat.export.native import save
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods.zeroquant_fp import zeroquant_fp
from minifloat.models.fused import fused_groups
from minifloat.plan import Plan
from minifloat.qtensor import encode
from minifloat.scales import amax_range, fit
from minifloat.spec import LayerSpec

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def llama() -> Any:
    """Two blocks of width 128, with rows of very different size; in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=160,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(torch.rand(layer.out_features, 1) * 4)
    return model


@pytest.fixture
def build(llama: Any, tmp_path: Path) -> Build:
    """build(spec) or build(rules): a packed checkpoint folder; outer scales are shared as fused."""
    import copy

    def make(
        plan: LayerSpec | tuple[tuple[str, LayerSpec | None], ...],
        *,
        name: str = "native",
        dtype: torch.dtype = torch.float32,
    ) -> Path:
        rules = (("*", plan),) if isinstance(plan, LayerSpec) else plan
        model = copy.deepcopy(llama).to(dtype)
        model.config.dtype = dtype
        plan_used = Plan(rules)
        if any(spec is not None and spec.calibrated is not None for _, spec in rules):
            plan_used = calibrate(model, plan_used)
        else:
            pack_model(model, plan_used)
        folder = tmp_path / name
        folder.mkdir()
        save(model, plan_used, folder)
        (folder / "tokenizer_config.json").write_text("{}\n")
        return folder

    return make


def calibrate(model: Any, plan: Plan) -> Plan:
    """The same by the passes of ZeroQuant-FP, which find the scales of static inputs."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(0, 160, (4, 32), generator=generator) for _ in range(2)]
    method = zeroquant_fp(rank=0, solver="nearest", search=False)
    return Plan.from_json(quantize(model, method, batches, plan=plan)["plan"])


def pack_model(model: Any, plan: Plan) -> None:
    """Every linear layer of the blocks to its nearest codes."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    }
    outers = {}
    for group in fused_groups(layers).values():
        specs = {name: plan.spec_of(name) for name in group}
        members = [name for name, spec in specs.items() if spec is not None and spec.weight]
        weight = specs[members[0]].weight if members else None  # type: ignore[union-attr]
        if weight is not None and weight.outer is not None:
            found = [fit(amax_range(layers[m].weight.data, weight), weight) for m in members]
            outers |= dict.fromkeys(members, torch.stack([f.outer for f in found]).amax(0))
    for name, layer in layers.items():
        spec = plan.spec_of(name)
        if spec is None or spec.weight is None:
            continue
        w = layer.weight.data.float()
        scale = None
        if name in outers:
            scale = fit(amax_range(w, spec.weight), spec.weight, outer=outers[name])
        q = encode(w, spec.weight, scale)
        model.set_submodule(name, QLinear.pack(q, spec, layer.bias, layer.weight.dtype))


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
