"""One model of each family by the same command: every nearest plan, packed, reloaded, equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from minifloat.export.native import save
from minifloat.jobs import images, text
from minifloat.layers import QLayer
from minifloat.models.load import load_model
from minifloat.models.pairs import encode, load_processor, read_pairs
from minifloat.models.pipeline import denoiser, open_pipeline
from tests.command_line import minifloat
from tests.jobs.tiny_folders import FAMILIES, pairs
from tests.jobs.tiny_folders import text as words

pytestmark = pytest.mark.filterwarnings("default")  # classes of transformers and diffusers warn
# (weights, activations)
PLANS = {
    "W8A8-FP": ("e4m3", "e4m3"),
    "W4A8-FP": ("e2m1", "e4m3"),
    "W4A16-FP": ("e2m1", "none"),
    "W8A8-INT": ("int8", "int8"),
    "W4A8-INT": ("int4", "int8"),
    "W4A16-INT": ("int4", "none"),
}
QUICK = ("--samples", "2", "--length", "16", "--evaluate", "2", "--steps", "2")
NEAREST = {"solver": "nearest", "rank": "0", "group_size": "16", "search": "false"}


def settings(weight: str, activation: str) -> list[str]:
    chosen = NEAREST | {"weight": weight, "activation": activation}
    return [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family, pictures with words, and a text."""
    root = tmp_path_factory.mktemp("families")
    made = {name: make(root / name) for name, make in FAMILIES.items()}
    return made | {"pairs": pairs(root / "pairs"), "text": words(root / "text.txt")}


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that jobs save, as they are in memory."""
    models: list[Any] = []

    def keep(model: Any, *rest: Any) -> int:
        models.append(model)
        return save(model, *rest)

    monkeypatch.setattr(text, "save", keep)
    monkeypatch.setattr(images, "save", keep)
    return models


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_plan_of_every_family(
    folders: dict[str, Path], saved: list[Any], family: str, plan: str, tmp_path: Path
) -> None:
    out, source = tmp_path / "out", folders[family]
    data = {"vision-language": "pairs", "language": "text", "mamba": "text"}.get(family)
    more = ("--data", folders[data]) if data else ()
    run = ("quantize", source, "--method", "zeroquant-fp", "--out", out, *QUICK, *more)
    assert minifloat(*run, *settings(*PLANS[plan])) == 0
    report = json.loads((out / "report.json").read_text())
    loaded = network(out)
    packed = {f"{name}.weight" for name, m in loaded.named_modules() if isinstance(m, QLayer)}
    assert packed == {row["name"] for row in report["ledger"] if row["status"] == "quantized"}
    assert all(row["reason"] for row in report["ledger"] if row["status"] == "kept")
    assert report["metrics"]
    inputs = arguments(family, source, folders["pairs"])
    with torch.no_grad():
        models = (saved[0].eval(), loaded, network(source))
        expected, found, original = (answer(model, inputs) for model in models)
    assert torch.equal(found, expected)
    assert 0 < float((found - original).norm() / original.norm()) < 0.6


def network(folder: Path) -> Any:
    """The network that a folder's job quantizes, loaded as users load it."""
    if (folder / "model_index.json").is_file():
        return denoiser(open_pipeline(str(folder)))[1].eval()
    return load_model(str(folder))[0]


def arguments(family: str, source: Path, pictures: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    if family == "vision-language":
        pair = read_pairs(pictures)[0]
        return encode(load_processor(str(source)), pair, torch.empty(0))
    if family == "unet":
        return {"sample": torch.randn(1, 3, 8, 8), "timestep": 3}
    if family == "dit":
        noise = {"hidden_states": torch.randn(1, 4, 8, 8)}
        return noise | {"timestep": torch.tensor([3]), "class_labels": torch.tensor([1])}
    return {"input_ids": torch.arange(5, 21)[None]}


def answer(model: Any, inputs: dict[str, Any]) -> Tensor:
    """The first output, from weights at even addresses: those of a mapped file may lie anywhere, and a
    product then sums in another order."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    found: Tensor = model(**inputs, return_dict=False)[0]
    return found
