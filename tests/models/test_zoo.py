"""Reference models by name."""

import socket
from pathlib import Path

import pytest
import torch

import minifloat
from minifloat.errors import UserError
from minifloat.models.pipeline import denoiser
from minifloat.models.zoo import locate, names, resolve


def test_a_model_of_the_zoo_loads_by_name() -> None:
    model, tokenizer = minifloat.zoo("llama-tiny")
    assert model.num_parameters() == 4_000_000
    assert tokenizer.decode(tokenizer("Union")["input_ids"]) == "Union"


def test_only_names_of_the_zoo_are_resolved() -> None:
    assert resolve("org/name") == "org/name"
    assert Path(resolve("zoo:llama-tiny")).name == "llama-tiny"


def test_unknown_names_are_answered_with_close_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="did you mean 'llama-tiny'"):
        locate("lama-tiny")


def test_without_the_repository_the_error_names_the_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minifloat.models.zoo.__file__", str(tmp_path / "a" / "b" / "c" / "zoo.py"))
    with pytest.raises(UserError, match="MINIFLOAT_ZOO"):
        locate("llama-tiny")


def test_the_terrain_model_is_said_to_be_no_folder() -> None:
    with pytest.raises(UserError, match=r"zoo\.terrain_weights\.load"):
        locate("terrain")


def test_all_weights_of_the_zoo_stay_below_60_megabytes() -> None:
    folder = Path(locate("llama-tiny")).parent
    sizes = {path: path.stat().st_size for path in folder.rglob("*.safetensors")}
    assert len(sizes) >= len(names())
    assert sum(sizes.values()) < 60e6


@pytest.mark.parametrize("name", names())
def test_every_model_of_the_zoo_loads_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*address: object) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = minifloat.zoo(name)
    network = found[0] if isinstance(found, tuple) else denoiser(found)[1]
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert (Path(locate(name)) / "README.md").read_text().startswith(f"# {name}\n")
