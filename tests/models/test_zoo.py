"""Reference models by name."""

from pathlib import Path

import pytest

import minifloat
from minifloat.errors import UserError
from minifloat.models.zoo import locate, resolve


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
