"""The model card says what was done and offers only exports that work."""

import shutil
from pathlib import Path

import pytest

from minifloat.card import write_card
from minifloat.export.contracts import CONTRACTS
from minifloat.export.write import export
from minifloat.jobs.job import Job
from minifloat.jobs.run import run

MODEL = Path(__file__).parents[1] / "zoo" / "llama-tiny"
PLAN = '{"rules": [["*", {"weight": "fp8-channel", "input": "fp8-token"}]]}'


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    (folder / "plan.json").write_text(PLAN)
    settings = (("solver", "nearest"), ("rank", "0"))
    plan, out = folder / "plan.json", folder / "out"
    run(Job(str(MODEL), out, settings=settings, plan=plan, samples=1, length=32, evaluate=128))
    return out


def test_offered_exports_work_and_refusals_have_reasons(fp8: Path, tmp_path: Path) -> None:
    card = (fp8 / "README.md").read_text()
    offered = [line for line in card.splitlines() if line.startswith("minifloat export")]
    for line in offered:
        name, weights_only = line.split()[4], "--weights-only" in line
        assert export(fp8, name, tmp_path / name, weights_only=weights_only)["layers"] == 28
    assert any("--to compressed-tensors" in line for line in offered)
    refused = [line for line in card.splitlines() if line.startswith("- ") and " cannot " in line]
    assert len(offered) + len(refused) == len(CONTRACTS)
    assert "  # vLLM: vllm serve DIR2" in card
    assert "| 28 | e4m3 1xall fp32 | e4m3 1xall fp32 dynamic | 8." in card
    assert "perplexity" in card


def test_only_names_of_a_hub_are_linked(fp8: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(fp8, copy)
    ledger = [{"status": "kept", "weight": None, "input": None, "bits": 16.0}]
    report = {"method": "m", "seed": 0, "minifloat": "0", "settings": {}, "ledger": ledger}
    report |= {"loads": ["AutoModelForCausalLM", "AutoTokenizer"]}
    for model, linked in (("org/name", True), ("./folder", False), ("/a/b", False)):
        write_card(report | {"model": model}, copy, pipeline=False)
        assert (f"base_model: {model}" in (copy / "README.md").read_text()) == linked
