"""W8A8, W4A8 and W4A16 in integers and floats: one call for every family, packed and loaded again."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import minifloat  # noqa: F401  registers with transformers
from minifloat.export.native import save
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.llama import LlamaAdapter
from minifloat.models.mamba import MambaAdapter
from minifloat.models.vlm import VLMAdapter
from tests.models import tiny_lm, tiny_vlm

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers warn
SETTINGS = {
    "int": (("int8", "int8"), ("int4", "int8"), ("int4", "none")),
    "float": (("e4m3", "e4m3"), ("e2m1", "e4m3"), ("e2m1", "none")),
}
ADAPTERS: dict[str, Any] = {
    "Llama": LlamaAdapter,
    "Mamba": MambaAdapter,
    "Mamba2": MambaAdapter,
    "Qwen2VL": VLMAdapter,
}


def tiny(family: str) -> nn.Module:
    if family in tiny_vlm.FAMILIES:
        return tiny_vlm.build(family, torch.float32)
    return tiny_lm.build(family).float()


def inputs(family: str) -> list[Any]:
    if family in tiny_vlm.FAMILIES:
        return [tiny_vlm.batch(family, torch.float32, seed) for seed in (1, 2)]
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    return list(ids.split(1))


def logits(model: nn.Module, batch: Any) -> Tensor:
    arguments = batch if isinstance(batch, dict) else {"input_ids": batch}
    with torch.no_grad():
        out: Tensor = model(**arguments, use_cache=False).logits
        return out


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("family", ADAPTERS)
def test_settings_of_a_family(family: str, kind: str, tmp_path: Any) -> None:
    batches, errors = inputs(family), []
    before = logits(tiny(family), batches[0])
    for weight, activation in SETTINGS[kind]:
        model = tiny(family)
        fixed = {"solver": "nearest", "rank": "0", "group_size": "-1", "search": "false"}
        method = build("zeroquant-fp", fixed | {"weight": weight, "activation": activation})
        quantize(model, method, batches, adapter=ADAPTERS[family]())
        after = logits(model, batches[0])
        errors.append(float((after - before).norm() / before.norm()))
        folder = tmp_path / f"{weight}-{activation}"
        folder.mkdir()
        save(model, method.plan, folder)
        assert torch.equal(logits(type(model).from_pretrained(folder), batches[0]), after)
    w8a8, w4a8, w4a16 = errors
    assert 0 < w8a8 < min(w4a8, w4a16)
    assert w4a16 < 1.1 * w4a8  # activations of 8 bits cost little beside weights of 4
