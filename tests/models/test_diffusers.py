"""The classes of diffusers that the adapters walk; `docs/diffusers.md` holds the table.

python -m tests.models.test_diffusers     # writes the table anew
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from minifloat import formats
from minifloat.calibrate.walk import walk
from minifloat.errors import UserError
from minifloat.layers import QLayer
from minifloat.method import Method, quantize
from minifloat.methods import build
from minifloat.models.dit import DiTAdapter
from minifloat.models.families import adapt, adapter_for
from minifloat.models.llama import LlamaAdapter
from minifloat.models.unet import UNetAdapter
from minifloat.passes.assign import assign_scales, round_to_nearest
from minifloat.plan import Plan
from minifloat.spec import LayerSpec, QuantSpec
from tests.models.diffusers_cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "diffusers.md"
FP8 = QuantSpec(formats.E2M5, (1, -1))
pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed", "ignore:In CPU autocast")


@torch.no_grad()
def packed(name: str, inputs: QuantSpec | None) -> tuple[nn.Module, nn.Module]:
    """A case's model, split where that is due, and its packed twin: rounded to nearest."""
    plan = Plan((("*", LayerSpec(FP8, inputs)),))
    method = Method("nearest", "", plan, (assign_scales(), round_to_nearest()))
    model = CASES[name].model(name)
    adapter = adapt(model)
    quantized = copy.deepcopy(model)
    quantize(quantized, method, CASES[name].batches(), adapter=adapter)
    return model, quantized


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_packed_model_computes_with_its_rounded_weights(name: str) -> None:
    model, quantized = packed(name, None)
    batch = CASES[name].batches(3)[2]
    expected, found = model(**batch).sample, quantized(**batch).sample
    for layer_name, layer in quantized.named_modules():
        if isinstance(layer, QLayer):
            weight = model.get_submodule(layer_name).get_parameter("weight")
            weight.data = layer.decoded().reshape(weight.shape)
    rounded = model(**batch).sample
    torch.testing.assert_close(found, rounded, rtol=0, atol=1e-4 * float(rounded.abs().max()))
    assert not torch.allclose(rounded, expected, rtol=0, atol=1e-5 * float(rounded.abs().max()))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_fp8_weights_and_inputs_are_near_full_precision(name: str) -> None:
    model, quantized = packed(name, FP8)
    batch = CASES[name].batches(3)[2]
    expected, found = model(**batch).sample, quantized(**batch).sample
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.03
    left = [
        name
        for block in adapter_for(quantized).blocks(quantized).values()
        for name in linear(block)
    ]
    assert not left


@pytest.mark.parametrize("rounding", ["gptq", "learned"])
def test_layers_without_a_hessian_are_rounded_beside_the_others(rounding: str) -> None:
    """Sana's depthwise convolutions."""
    name = "SanaTransformer2DModel"
    model = CASES[name].model(name)
    method = build("fp4dit", {"rounding": rounding, "steps": "3", "search": "false"})
    report = quantize(model, method, CASES[name].batches())
    depthwise = [row for row in report["ledger"] if row["name"].endswith("conv_depth.weight")]
    assert [row["status"] for row in depthwise] == ["quantized"] * 2


def linear(block: nn.Module) -> list[str]:
    """Layers of a block that are not packed."""
    return [n for n, m in block.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.splits])
@torch.no_grad()
def test_layers_that_see_concatenations_are_split_without_a_change(name: str) -> None:
    case = CASES[name]
    model, split = case.model(name), case.model(name)
    adapter = adapt(split)
    assert isinstance(adapter, UNetAdapter | DiTAdapter)
    assert len(adapter.splits) == case.splits
    batch = case.batches()[0]
    torch.testing.assert_close(split(**batch).sample, model(**batch).sample, rtol=1e-4, atol=1e-4)


def test_the_split_falls_between_the_tensors_that_flux_and_hunyuan_concatenate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[int]] = []
    cat = torch.cat

    def record_sizes(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        if tensors[0].ndim == 3 and dim in (2, -1):
            seen.append([part.shape[-1] for part in tensors])
        return cat(tensors, dim)

    for name in ("FluxTransformer2DModel", "HunyuanDiT2DModel"):
        model = CASES[name].model(name)
        monkeypatch.setattr(torch, "cat", record_sizes)
        with torch.no_grad():
            model(**CASES[name].batches()[0])
        monkeypatch.undo()
        for sizes in DiTAdapter.of(model).splits.values():
            assert sizes in seen


def test_spatial_and_temporal_blocks_of_latte_take_turns() -> None:
    model = CASES["LatteTransformer3DModel"].model("LatteTransformer3DModel")
    batches = CASES["LatteTransformer3DModel"].batches()
    order = [window.name for window in walk(model, DiTAdapter(), batches, {}, ())]
    spatial, temporal = "transformer_blocks", "temporal_transformer_blocks"
    assert order == [f"{spatial}.0", f"{temporal}.0", f"{spatial}.1", f"{temporal}.1"]


def test_the_adapter_is_chosen_by_the_shape_of_the_model() -> None:
    for name, case in CASES.items():
        kind = UNetAdapter if name.startswith("UNet") else DiTAdapter
        assert isinstance(adapter_for(case.model(name)), kind), name

    class Decoder(nn.Module):
        def get_decoder(self) -> nn.Module:
            return self

    assert isinstance(adapter_for(Decoder()), LlamaAdapter)
    with pytest.raises(UserError, match="pass it as adapter="):
        adapter_for(nn.Linear(2, 2))
    with pytest.raises(UserError, match="no list of transformer blocks"):
        DiTAdapter().blocks(nn.Linear(2, 2))


def table() -> str:
    """Markdown: what the walk finds in each class."""
    lines = ["| class | adapter | blocks lie in | split |", "|---|---|---|---|"]
    for name, case in CASES.items():
        adapter = adapt(model := case.model(name))
        assert isinstance(adapter, UNetAdapter | DiTAdapter)
        lists = {block.partition(".")[0] for block in adapter.blocks(model)}
        blocks = ", ".join(f"`{each}`" for each in sorted(lists))
        found = {layer.rpartition(".")[2] for layer in adapter.splits}
        split = ", ".join(f"`{each}`" for each in sorted(found))
        kind = type(adapter).__name__.removesuffix("Adapter").lower()
        lines.append(f"| {name} | `{kind}` | {blocks} | {split} |")
    return "\n".join(lines)


def test_the_page_holds_the_table() -> None:
    assert table() in PAGE.read_text(), "run python -m tests.models.test_diffusers"


if __name__ == "__main__":
    head = PAGE.read_text().partition("\n| class")[0]
    PAGE.write_text(f"{head}\n{table()}\n")
