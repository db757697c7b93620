"""SDNQ holds what others cannot: convolutions and low-rank branches, and pipelines of diffusers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minifloat import formats
from minifloat.card import write_card
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.native import save
from minifloat.export.native_folder import open_native
from minifloat.export.pipeline import export_pipeline
from minifloat.export.read import read_folder
from minifloat.export.verify import parse_reader, verify
from minifloat.export.write import export
from minifloat.plan import Plan
from minifloat.qtensor import encode
from minifloat.spec import LayerSpec, QuantSpec
from minifloat.substitute import packed_like
from tests.command_line import minifloat
from tests.export.conftest import config_of
from tests.export.test_write import digest

ROWS = LayerSpec(QuantSpec(formats.E3M2, (1, -1)))
GROUPS = LayerSpec(QuantSpec(formats.E2M3, (1, 32), formats.FP16))


class Network(nn.Module):
    """What diffusers would save: a convolution, one of a single place, a layer with a branch, others."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"_class_name": "Network"}
        self.conv = nn.Conv2d(8, 16, 3)
        self.point = nn.Conv2d(64, 16, 1)
        self.linear = nn.Linear(64, 32)
        self.kept = nn.Linear(8, 8)

    def to_json_string(self) -> str:
        return json.dumps(self.config)


def checkpoint(folder: Path, conv: LayerSpec = ROWS) -> Path:
    torch.manual_seed(0)
    model: Any = Network()
    plan = Plan((("conv", conv), ("kept", None), ("*", GROUPS)))
    for name in ("conv", "point", "linear"):
        layer, spec = model.get_submodule(name), plan.spec_of(name)
        assert spec is not None and spec.weight is not None
        w = layer.weight.data.flatten(1)
        rank = 4 * (name == "linear")
        packed = packed_like(layer, spec, rank)
        branch = (torch.randn(32, 4).half(), torch.randn(4, 64).half()) if rank else None
        packed.fill(encode(w, spec.weight), bias=layer.bias, low_rank=branch)
        model.set_submodule(name, packed)
    folder.mkdir(parents=True)
    save(model, plan, folder)
    return folder


FILE = "diffusion_pytorch_model.safetensors"


def test_convolutions_and_branches_go_out_and_come_back(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "native")
    assert export(source, "sdnq", tmp_path / "one")["layers"] == 3
    found = load_file(tmp_path / "one" / FILE)
    assert found["conv.scale"].shape == (16, 1, 3, 3)
    assert found["point.scale"].shape == (16, 2, 1, 1, 1)
    assert found["linear.svd_up"].shape == (32, 4)
    config = config_of(tmp_path / "one")["quantization_config"]
    assert config["quant_conv"] and "kept.weight" in config["modules_to_not_convert"]
    assert compare(tmp_path / "one", open_native(source)) == []
    assert read_folder(tmp_path / "one", tmp_path / "back") == 3
    export(tmp_path / "back", "sdnq", tmp_path / "two")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def _nibbles(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv.weight"] ^= 0x80


def _branch(tensors: dict[str, torch.Tensor]) -> None:
    tensors["linear.svd_up"] *= 2


def _scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["point.scale"].reciprocal_()


def _places(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv.scale"][:, :, 1:] *= 2


MUTATIONS = [
    (_nibbles, "conv: .* weights differ"),
    (_branch, "linear: its low-rank branch"),
    (_scale, "point: .* weights differ"),
    (_places, "conv: scale holds bits"),
]


@pytest.mark.parametrize(("mutate", "words"), MUTATIONS)
def test_every_mutation_is_caught(mutate: Any, words: str, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "native")
    export(source, "sdnq", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / FILE)
    mutate(tensors)
    save_file(tensors, tmp_path / "out" / FILE)
    (problem,) = compare(tmp_path / "out", open_native(source))
    assert re.match(words, problem), problem


def test_what_has_no_place(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a", LayerSpec(QuantSpec(formats.E3M2, (1, 8))))
    with pytest.raises(UserError, match="groups in convolutions cover channels alone"):
        export(source, "sdnq", tmp_path / "out")
    with pytest.raises(UserError, match="conv: it is a 3x3 convolution"):
        export(source, "modelopt", tmp_path / "out")
    tensors = load_file(source / FILE)
    tensors["up.parts.0.weight"] = torch.zeros(4, 4)
    save_file(tensors, source / FILE)
    with pytest.raises(UserError, match="layers that see a concatenation"):
        export(source, "sdnq", tmp_path / "out")


REPORT = {"model": "m", "method": "m", "seed": 0, "minifloat": "0", "settings": {}, "ledger": []}


def test_a_pipeline_goes_out_whole(tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    checkpoint(source / "transformer")
    (source / "scheduler").mkdir()
    (source / "scheduler" / "scheduler_config.json").write_text("{}")
    (source / "model_index.json").write_text("{}")
    (source / "report.json").write_text("{}")
    out = tmp_path / "out"
    assert minifloat("export", source, "--to", "sdnq", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "export.json",
        "model_index.json",
        "scheduler",
        "transformer",
    }
    assert {f.verdict for f in verify(out / "transformer", parse_reader("diffusers"))} == {"needs"}
    write_card(REPORT, source, pipeline=True)
    card = (source / "README.md").read_text()
    assert "export DIR --to sdnq --out DIR2\n  # diffusers: DiffusionPipeline" in card
    assert "- torchao cannot hold conv: it is a 3x3 convolution" in card
    assert "modelopt" not in card
    (source / "transformer" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no component of the pipeline"):
        export_pipeline(source, "sdnq", tmp_path / "no")
