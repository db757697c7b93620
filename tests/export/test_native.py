"""Our own checkpoint says each layer's shape, so that nothing is guessed and nothing is mixed up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.contracts import CONTRACTS
from minifloat.export.gguf.write import export_gguf
from minifloat.export.native import save, whole_or_nothing
from minifloat.export.native_folder import open_native
from minifloat.export.write import export
from minifloat.hf import swap_in
from minifloat.layers import QLayer
from minifloat.models.load import load_model
from minifloat.packing import pack
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode
from minifloat.spec import MXFP4, LayerSpec, QuantSpec
from minifloat.substitute import packed_like
from minifloat.tiles import as_matrix
from tests.export.conftest import Build, config_of

INT3 = LayerSpec(QuantSpec(formats.INT3, (1, -1), formats.FP16))


class Config:
    """As much of a transformers configuration as a checkpoint needs."""

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "llama"}


class Small(nn.Module):
    """A linear layer of 5 columns and a convolution, whose rows of 3-bit codes end within a byte."""

    def __init__(self, columns: int = 5, kernel: int = 3) -> None:
        super().__init__()
        self.config = Config()
        self.linear = nn.Linear(columns, 7)
        self.conv = nn.Conv2d(3, 4, kernel, stride=2)


def checkpoint(folder: Path) -> Small:
    torch.manual_seed(0)
    model = Small()
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            layer = packed_like(module, INT3)
            assert INT3.weight is not None
            layer.fill(encode(as_matrix(module.weight.detach()), INT3.weight), bias=module.bias)
            model.set_submodule(name, layer)
    folder.mkdir()
    save(model, Plan((("*", INT3),)), folder)  # type: ignore[arg-type]
    return model


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    config = config_of(folder)
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    found: dict[str, Any] = config["quantization_config"]
    return found


def version_1(quantization: dict[str, Any]) -> None:
    quantization["format_version"] = 1
    quantization["layers"] = {name: row["rank"] for name, row in quantization["layers"].items()}


def test_shapes_that_bytes_do_not_tell_are_stored(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "a")
    layers = config_of(tmp_path / "a")["quantization_config"]["layers"]
    assert layers == {
        "linear": {"rank": 0, "shape": [7, 5]},
        "conv": {"rank": 0, "shape": [4, 27], "kernel": [3, 3]},
    }
    folder = open_native(tmp_path / "a")
    for name in layers:
        layer, packed = folder.layer(name), model.get_submodule(name)
        assert isinstance(packed, QLayer)
        assert list(layer.q.shape) == layers[name]["shape"]
        assert torch.equal(decode(layer.q), packed.decoded())
        assert torch.equal(pack(layer.q.codes, 3), packed.weight)


def test_a_checkpoint_of_the_first_version_is_still_read(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(MXFP4))
    tokens = torch.arange(32)[None]
    new = load(source)(tokens).logits
    export(source, "compressed-tensors", tmp_path / "one")
    edit(source, version_1)
    assert torch.equal(load(source)(tokens).logits, new)
    export(source, "compressed-tensors", tmp_path / "two")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_a_later_version_is_refused_by_every_reader(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(MXFP4))
    words = "format version 3, but this minifloat reads versions up to 2; update minifloat"
    edit(source, lambda quantization: quantization.update(format_version=3))
    with pytest.raises(UserError, match=words):
        open_native(source)
    with pytest.raises(UserError, match=words):
        load_model(str(source))


def test_saving_a_loaded_model_again_keeps_the_configuration(build: Build, tmp_path: Path) -> None:
    source = build(LayerSpec(MXFP4))
    load(source).save_pretrained(tmp_path / "again")
    one, two = (config_of(f)["quantization_config"] for f in (source, tmp_path / "again"))
    assert one == two


def test_another_model_than_the_checkpoints_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a")
    quantization = config_of(tmp_path / "a")["quantization_config"]
    swap_in(Small(), quantization)
    with pytest.raises(UserError, match=r"linear \[7, 5\] in the checkpoint, but linear \[7, 6\]"):
        swap_in(Small(columns=6), quantization)
    with pytest.raises(UserError, match=r"a 3x3 convolution .* but a 1x1 convolution"):
        swap_in(Small(kernel=1), quantization)


def test_damaged_entries_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a")
    edit(tmp_path / "a", lambda q: q["layers"]["linear"].update(shape=[7, 6]))
    with pytest.raises(UserError, match=r"linear is \[7, 6\], whose codes take \[7, 3\] bytes"):
        open_native(tmp_path / "a")
    edit(tmp_path / "a", lambda q: q["layers"].update(linear=0))
    with pytest.raises(UserError, match=r"config\.json says 0 of linear"):
        open_native(tmp_path / "a")
    edit(tmp_path / "a", lambda q: q.pop("layers"))
    with pytest.raises(UserError, match="names no packed layers"):
        open_native(tmp_path / "a")


@pytest.mark.parametrize("to", [*(c for c in CONTRACTS if c != "sdnq"), "gguf"])
def test_convolutions_are_refused_with_the_reason(to: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "a")
    with pytest.raises(
        UserError, match=r"hold conv: it is a 3x3 convolution \[4, 27\], and readers"
    ):
        if to == "gguf":
            export_gguf(tmp_path / "a", tmp_path / "out")
        else:
            export(tmp_path / "a", to, tmp_path / "out")


def test_what_a_killed_run_left_goes_with_the_next_one(tmp_path: Path) -> None:
    for name in (".out.01234567.partial", ".other.01234567.partial"):
        (tmp_path / name).mkdir()
    with whole_or_nothing(tmp_path / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.01234567.partial", "out"]
