"""The main job on the committed small Llama, from the command line to a reloaded checkpoint."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minifloat.calibrate.shelf import Shelf
from minifloat.errors import UserError
from minifloat.layers import QLinear, weights_held
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.qtensor import fake_quantize
from tests.command_line import minifloat

MODEL = Path(__file__).parents[1] / "zoo" / "llama-tiny"
QUICK = ("--samples", "4", "--length", "128", "--evaluate", "1024")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("job") / "packed"
    assert minifloat("quantize", MODEL, "--out", out, *QUICK) == 0
    return out


@pytest.fixture
def model() -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    yield AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_report_and_checkpoint_are_whole(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert "<svg" in (folder / "report.html").read_text()
    rows = {row["name"]: row for row in report["ledger"]}
    assert sum(row["parameters"] for row in rows.values()) == 4_000_000
    for name, row in rows.items():
        assert row["status"] == ("quantized" if "proj" in name else "kept"), name
        assert row["status"] == "quantized" or row["reason"]
    perplexity = next(row for row in report["metrics"] if row["name"] == "perplexity")
    assert perplexity["quantized"] < 1.05 * perplexity["full_precision"]


def test_bytes_are_within_two_percent_of_theory(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    stored = sum(
        t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values()
    )
    assert stored == report["size"]["after"]
    assert stored == pytest.approx(report["size"]["theory"], rel=0.02)


def test_from_pretrained_gives_the_identical_tensors_and_generates(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    state, stored = model.state_dict(), load_file(folder / "model.safetensors")
    assert set(stored) == set(state)
    for name, tensor in stored.items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor, state[name]), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The people of the United", return_tensors="pt")
    with weights_held(model):
        words = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert words.shape[1] == prompt["input_ids"].shape[1] + 8


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": "e3m0", "activation": "int8", "constraint": "m1"},
        {"weight": "int4", "activation": "none", "constraint": "m2", "solver": "nearest"},
        {"weight": "e4m3", "group_size": "-1", "rank": "0", "search": "false"},
    ],
    ids=str,
)
def test_packed_logits_are_the_fake_quantized_ones(model: Any, settings: dict[str, str]) -> None:
    tokens = torch.arange(2 * 64).view(2, 64)
    quantize(model, build("zeroquant-fp", settings), [tokens])
    packed = model(input_ids=tokens).logits
    held = nn.ModuleDict()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QLinear):
            model.set_submodule(name, _fake(layer))
    assert len(held) == 0
    assert torch.equal(packed, model(input_ids=tokens).logits)


def _fake(layer: QLinear) -> nn.Linear:
    """A plain linear layer on the decoded weight, with its input fake-quantized by a hook."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    w = layer.decoded()
    if layer.low_rank is not None:
        w = w + layer.low_rank[0].float() @ layer.low_rank[1].float()
    plain.weight = nn.Parameter(w)
    spec = layer.spec.input
    if spec is not None:
        plain.register_forward_pre_hook(lambda module, args: fake_quantize(args[0], spec))
    return plain


def test_gptq_and_lorc_each_raise_the_output_sqnr(model: Any) -> None:
    import copy

    tokens = [torch.randint(0, 2048, (4, 128), generator=torch.Generator().manual_seed(0))]
    means = []
    for settings in ({"solver": "nearest", "rank": "0"}, {"rank": "0"}, {"rank": "16"}):
        report = quantize(copy.deepcopy(model), build("zeroquant-fp", settings), tokens)
        rows = [row["output_sqnr"] for row in report["ledger"] if row["status"] == "quantized"]
        means.append(sum(rows) / len(rows))
    assert means[0] < means[1] < means[2]


def test_spilled_activations_give_the_same_result(model: Any) -> None:
    import copy

    tokens = [
        torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(i)) for i in (1, 2)
    ]
    twin = copy.deepcopy(model)
    quantize(model, build("zeroquant-fp", {"rank": "0"}), tokens)
    quantize(twin, build("zeroquant-fp", {"rank": "0"}), tokens, budget=0)
    for (name, one), two in zip(
        model.state_dict().items(), twin.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_shelf_spills_above_its_budget_and_frees_what_nobody_needs() -> None:
    shelf = Shelf(budget=100)
    first = shelf.keep(torch.zeros(4, 4))
    (second, note) = shelf.keep((torch.full((4, 4), 2.0), "a note"))
    assert shelf.spilled == 64
    assert note == "a note"
    assert torch.equal(second, torch.full((4, 4), 2.0))
    del first
    shelf.keep(torch.ones(4, 4))
    assert shelf.spilled == 64


def fails(capsys: pytest.CaptureFixture[str], words: str, *arguments: object) -> None:
    """The command exits with 2 and says one sentence that holds the words."""
    capsys.readouterr()
    assert minifloat(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said, said
    assert said.count("\n") == 1, said


def test_mistakes_are_one_sentence_and_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    empty, plan = tmp_path / "empty.txt", tmp_path / "plan.json"
    empty.write_text("")
    plan.write_text('{"rules": [["*.dwn_proj", {"weight": "mxfp4"}]]}')
    run = ("quantize", MODEL, "--out", out, *QUICK)
    fails(capsys, "did you mean 'zeroquant-fp'", *run, "--method", "zeroquant_pf")
    fails(capsys, "did you mean 'group_size'", *run, "--set", "groupsize=64")
    fails(capsys, "is a int, not 'x'", *run, "--set", "rank=x")
    fails(capsys, "KEY=VALUE", *run, "--set", "rank")
    fails(capsys, "unknown format 'e2m11'", *run, "--set", "weight=e2m11")
    fails(capsys, "empty", *run, "--data", empty)
    fails(capsys, "none.txt", *run, "--data", tmp_path / "none.txt")
    fails(capsys, "did you mean 'down_proj'", *run, "--plan", plan)
    fails(capsys, "nowhere", "quantize", tmp_path / "nowhere", "--out", out)
    fails(capsys, "no minifloat checkpoint", "show", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    fails(capsys, "not a minifloat checkpoint", "quantize", MODEL, "--out", tmp_path, *QUICK)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.txt", "notes.txt", "plan.json"]


def test_nan_weights_and_truncated_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    state = load_file(MODEL / "model.safetensors")
    state["model.layers.1.mlp.down_proj.weight"][3, 4] = torch.nan
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    run = ("quantize", broken, "--out", tmp_path / "out", *QUICK)
    fails(capsys, "model.layers.1.mlp.down_proj.weight holds 1 NaN or Inf", *run)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    fails(capsys, "broken", *run)
    # The block before the broken one is finished, and stays for --resume.
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.unfinished", "broken"]


def test_a_full_disk_leaves_finished_blocks_alone(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: writing the tensors fails in the middle."""
    out = tmp_path / "out"
    code = "import sys; from minifloat import cli; cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "quantize", str(MODEL), "--out", str(out), *QUICK],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        preexec_fn=_small_files,
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write {out}" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == [".out.unfinished"]
    assert not list(tmp_path.rglob("*.partial"))


def _small_files() -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_collapsed_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("quantize", MODEL, "--out", tmp_path / "out", *QUICK)
    bad = (
        "--set",
        "weight=int2",
        "--set",
        "solver=nearest",
        "--set",
        "search=false",
        "--set",
        "rank=0",
    )
    fails(capsys, "collapsed", *run, *bad, "--set", "activation=int2")
    assert list(tmp_path.iterdir()) == []


def test_show_and_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert minifloat("show", folder) == 0
    assert minifloat("show", "formats") == 0
    assert minifloat("show", "methods") == 0
    said = capsys.readouterr().out
    assert "e4m3" in said
    assert "zeroquant-fp" in said
    assert minifloat("evaluate", folder, "--against", MODEL, "--tokens", 512, "--length", 128) == 0
    assert "perplexity" in capsys.readouterr().out


def test_an_unknown_model_is_told_what_to_write() -> None:
    with pytest.raises(UserError, match="Write a class with blocks"):
        quantize(nn.Linear(2, 2), build("zeroquant-fp", {}), [torch.zeros(1, 1)])


def test_import_and_help_leave_torch_alone() -> None:
    code = "import sys, minifloat, minifloat.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
