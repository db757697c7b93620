"""Vision-language models through the walk: three towers, token masks, packed and near the original."""

from typing import Any

import pytest
import torch

import minifloat  # noqa: F401  registers with transformers
from minifloat.calibrate.line import tensors
from minifloat.calibrate.walk import walk
from minifloat.errors import UserError
from minifloat.export.native import save
from minifloat.layers import QLinear
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.vlm import VLMAdapter
from tests.models import tiny_lm, tiny_vlm
from tests.models.tiny_vlm import FAMILIES, IMAGE_TOKEN

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn


def tiny(family: str) -> Any:
    return tiny_vlm.build(family, torch.float32)


def batches(family: str) -> list[dict[str, torch.Tensor]]:
    return [tiny_vlm.batch(family, torch.float32, seed) for seed in (1, 2)]


def w8a8() -> Any:
    settings = {"weight": "int8", "activation": "int8", "group_size": "-1"}
    return build("zeroquant-fp", settings | {"solver": "nearest", "rank": "0", "search": "false"})


def test_families_are_told_apart() -> None:
    assert all(VLMAdapter.accepts(tiny(family)) for family in FAMILIES)
    assert not VLMAdapter.accepts(tiny_lm.build("Llama"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tower_has_blocks_and_all_are_called(family: str) -> None:
    model, adapter = tiny(family), VLMAdapter()
    towers = [adapter.tower(model, name) for name in ("vision", "projector", "language")]
    assert all(towers)
    called: list[str] = []
    for name, block in adapter.blocks(model).items():
        block.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        adapter.run(model, batches(family)[0])
    assert sorted(called) == sorted(name for tower in towers for name in tower)


@pytest.mark.parametrize("family", FAMILIES)
def test_w8a8_is_near_the_original(family: str) -> None:
    model, inputs = tiny(family), batches(family)
    with torch.no_grad():
        before = model(**inputs[0], use_cache=False).logits
        report = quantize(model, w8a8(), inputs, adapter=VLMAdapter())
        after = model(**inputs[0], use_cache=False).logits
    assert 0 < float((after - before).norm() / before.norm()) < 0.05
    parameters = {name for name, _ in tiny(family).named_parameters()}
    assert {row["name"] for row in report["ledger"]} == parameters
    packed = [name for name, module in model.named_modules() if isinstance(module, QLinear)]
    for tower in ("vision", "language"):
        blocks = VLMAdapter().tower(model, tower)
        assert all(any(name.startswith(block) for name in packed) for block in blocks)


def test_the_walk_computes_what_the_model_does() -> None:
    model, adapter, inputs = tiny("Qwen2VL"), VLMAdapter(), batches("Qwen2VL")
    *_, last = adapter.blocks(model).values()
    expected: list[torch.Tensor] = []
    handle = last.register_forward_hook(lambda *call: expected.append(tensors(call[2])[0]))
    with torch.no_grad():
        for one in inputs:
            adapter.run(model, one)
    handle.remove()
    for window in walk(model, adapter, inputs, {}, ()):
        found = [tensors(target)[0] for target in window.targets]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_a_packed_model_loads(tmp_path: Any) -> None:
    model, inputs, method = tiny("Llava"), batches("Llava"), w8a8()
    quantize(model, method, inputs, adapter=VLMAdapter())
    save(model, method.plan, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        logits = [m(**inputs[0], use_cache=False).logits for m in (model, loaded)]
    assert torch.equal(*logits)


def test_one_tower_alone() -> None:
    model = tiny("Llava")
    quantize(model, w8a8(), batches("Llava"), adapter=VLMAdapter(towers=("language",)))
    packed = [name for name, module in model.named_modules() if isinstance(module, QLinear)]
    assert packed
    assert all("language_model" in name for name in packed)


def test_text_alone_does_not_reach_the_vision_tower() -> None:
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with pytest.raises(UserError, match="never reached"):
        quantize(tiny("Llava"), w8a8(), [ids], adapter=VLMAdapter())


def test_unknown_towers_are_named() -> None:
    with pytest.raises(UserError, match="language"):
        VLMAdapter(towers=("langage",)).blocks(tiny("Llava"))


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_divide_the_tokens(family: str) -> None:
    model, one = tiny(family), batches(family)[0]
    ids = one["input_ids"]
    padded = torch.ones_like(ids)
    padded[0, -1] = 0
    labels = torch.full_like(ids, -100)
    labels[0, -3:] = ids[0, -3:]
    masks = VLMAdapter().masks(model, one | {"attention_mask": padded, "labels": labels})
    assert int(masks["vision"].sum()) == FAMILIES[family][-1]
    assert bool((ids[masks["vision"]] == IMAGE_TOKEN).all())
    assert torch.equal(masks["vision"] ^ masks["language"], padded.bool())
    assert masks["answer"].nonzero().tolist() == [[0, ids.shape[1] - 3], [0, ids.shape[1] - 2]]


def test_masks_fit_a_layer_s_inputs() -> None:
    """They are for methods that weigh tokens by modality."""
    model, one = tiny("Llava"), batches("Llava")[0]
    seen: list[torch.Tensor] = []
    layer = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        VLMAdapter().run(model, one)
    handle.remove()
    masks = VLMAdapter().masks(model, one)
    parts = [seen[0][masks[name]] for name in ("vision", "language")]
    assert sum(len(part) for part in parts) == seen[0].shape[1]
