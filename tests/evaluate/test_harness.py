"""lm-eval judges the live model, on a task whose data lies at hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from minifloat.errors import UserError
from minifloat.evaluate.harness import tasks
from minifloat.models.load import load_model

ZOO = Path(__file__).parents[2] / "zoo" / "llama-tiny"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load_model(str(ZOO), dtype="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task of which end of a sentence is English; a trained model knows all but a few."""
    pairs = [
        ("We have the power to", (" do it.", " it of the.")),
        ("The people of the United", (" States.", " of of.")),
        ("Mr. Speaker, Mr. Vice", (" President.", " was the.")),
        ("I ask the Congress", (" to act.", " act to the and.")),
        ("My fellow", (" Americans.", " of the to.")),
        ("In the past year, we", (" have done much.", " of much the.")),
    ]
    rows = [{"text": text, "ends": list(ends)} for text, ends in pairs]
    data = tmp_path / "ends.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ends.yaml").write_text(
        "task: ends\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\n'
        'target_delimiter: ""\n'
        'doc_to_choice: "{{ends}}"\n'
        "doc_to_target: 0\n"
        "metric_list: [{metric: acc}]\n"
    )
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_a_task_from_a_folder(
    loaded: tuple[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    found = tasks(*loaded, ["ends"], folder=folder)
    assert found["ends"]["acc,none"] >= 0.8


@pytest.mark.filterwarnings("default")
def test_an_unknown_task_is_named(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(UserError, match="hellaswag"):
        tasks(*loaded, ["helaswag"])
    with pytest.raises(UserError, match="at least one"):
        tasks(*loaded, [])
