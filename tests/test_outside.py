"""Packed embeddings and heads: only where a rule names them, held once, and loaded as they were."""

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, CompileConfig

from minifloat import formats, load, method
from minifloat.embedding import QEmbedding, TiedHead
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.contracts import CONTRACTS
from minifloat.export.gguf.write import export_gguf
from minifloat.export.native import save
from minifloat.export.native_folder import open_native
from minifloat.export.write import export
from minifloat.jobs import text
from minifloat.jobs.job import Job
from minifloat.jobs.run import run
from minifloat.layers import QLinear, weights_held
from minifloat.method import quantize
from minifloat.methods import build
from minifloat.models.load import load_model
from minifloat.plan import Plan
from minifloat.qtensor import decode, encode
from minifloat.spec import SPECS, LayerSpec, QuantSpec
from minifloat.substitute import packed_like
from tests.jobs import tiny_folders
from tests.models import tiny_lm

IDS = torch.arange(1, 41).reshape(2, 20)
BLOCKS = ("*", {"weight": "int8-channel"})
HEAD = {"weight": "int8-channel", "input": "int8-token"}
NEAREST = build("zeroquant-fp", {"solver": "nearest", "rank": "0", "search": "false"})


def quantized(
    *rules: tuple[str, Any], tied: bool = True, **sizes: int
) -> tuple[Any, Any, dict[str, Any]]:
    """A tiny Llama before and after, and the report."""
    model: Any = tiny_lm.build("Llama", tie_word_embeddings=tied, **sizes).float().eval()
    packed = copy.deepcopy(model)
    plan = Plan.from_json({"rules": [list(rule) for rule in rules]})
    return model, packed, quantize(packed, NEAREST, [IDS], plan=plan)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


SPEC_CASES = [
    *SPECS.values(),
    QuantSpec(formats.UINT4, (1, 16), formats.FP16, zero_point=True),
    QuantSpec(formats.INT4, (4, 8), QuantSpec(formats.E4M3, (2, 1))),
]


@pytest.mark.parametrize("spec", SPEC_CASES, ids=str)
def test_rows_are_those_of_the_decoded_table(spec: QuantSpec) -> None:
    table = nn.Embedding(37, 24)
    layer = packed_like(table, LayerSpec(spec))
    q = encode(table.weight.detach(), spec)
    layer.fill(q)
    ids = torch.tensor([[0, 36, 5], [5, 4, 17]])
    expected = decode(q)[ids]
    assert torch.equal(layer(ids), expected)
    with weights_held(layer):
        assert torch.equal(layer(ids), expected)


def test_patterns_leave_the_head_alone() -> None:
    _, packed, report = quantized(BLOCKS)
    assert isinstance(packed.lm_head, nn.Linear)
    row = next(row for row in report["ledger"] if "embed" in row["name"])
    assert row["status"] == "kept"


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_tied_pair_is_one_set_of_codes(name: str) -> None:
    model, packed, report = quantized(BLOCKS, (name, HEAD))
    assert isinstance(packed.model.embed_tokens, QEmbedding)
    assert isinstance(packed.lm_head, TiedHead)
    assert not [key for key in packed.state_dict() if key.startswith("lm_head")]
    row = next(row for row in report["ledger"] if "embed" in row["name"])
    assert row["status"] == "quantized"
    assert row["weight_sqnr"] > 35
    assert sum(count for _, count in row["histogram"]) == row["parameters"]
    assert "lm_head" in row["reason"]
    assert report["size"]["theory"] < 0.3 * report["size"]["before"]
    assert torch.nn.functional.cosine_similarity(logits(packed), logits(model), -1).min() > 0.999


def test_copies_of_a_model_do_not_share_codes() -> None:
    _, packed, _ = quantized(BLOCKS, ("lm_head", HEAD))
    other = copy.deepcopy(packed)
    packed.model.embed_tokens.weight.zero_()
    assert other.lm_head.table is other.model.embed_tokens
    assert other.lm_head.table.weight.any()


def test_untied_layers_are_named_one_by_one() -> None:
    _, packed, _ = quantized(BLOCKS, ("lm_head", HEAD), tied=False)
    assert isinstance(packed.lm_head, QLinear)
    assert isinstance(packed.model.embed_tokens, nn.Embedding)
    table = ("model.embed_tokens", {"weight": "int8-channel"})
    _, packed, _ = quantized(BLOCKS, table, tied=False)
    assert isinstance(packed.model.embed_tokens, QEmbedding)
    assert isinstance(packed.lm_head, nn.Linear)


@pytest.mark.parametrize(
    ("rules", "tied", "says"),
    [
        ([("lm_head", {**HEAD, "input": "fp8-tensor"})], True, "dynamic"),
        ([("lm_head", HEAD), ("model.embed_tokens", None)], True, "the same of both"),
        ([("model.embed_tokens", HEAD)], False, "weight alone"),
        ([("lm_haed", HEAD)], False, "did you mean 'lm_head'"),
    ],
)
def test_what_cannot_be_is_refused(rules: list[Any], tied: bool, says: str) -> None:
    with pytest.raises(UserError, match=says):
        quantized(*rules, BLOCKS, tied=tied)


def test_embeddings_that_compute_are_refused() -> None:
    model = tiny_lm.build("Gemma3Text", tie_word_embeddings=True).float()
    plan = Plan.from_json({"rules": [["lm_head", HEAD], list(BLOCKS)]})
    with pytest.raises(UserError, match="more than a look-up"):
        quantize(model, NEAREST, [IDS], plan=plan)


def job(folder: Path, name: str, *, tied: bool = True, resume: bool = False) -> Path:
    """A tiny model quantized with its head into a folder."""
    model = folder / "model"
    if not model.exists():
        tiny_folders.language(model, tie_word_embeddings=tied)
        tiny_folders.text(folder / "text.txt")
    settings = (("head", "e4m3"), ("solver", "nearest"), ("rank", "0"))
    sizes: dict[str, Any] = {"samples": 2, "length": 32, "evaluate": 64}
    asked = Job(str(model), folder / name, "zeroquant-fp", settings, folder / "text.txt", **sizes)
    run(replace(asked, resume=resume), say=lambda line: None)
    return folder / name


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_gives_the_same_logits(
    tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = job(tmp_path, "packed", tied=tied)
    report = json.loads((out / "report.json").read_text())
    packed = sum(row["bytes"] for row in report["ledger"])
    assert abs(packed / report["size"]["theory"] - 1) < 0.02
    with caplog.at_level(logging.WARNING):
        first, tokenizer = load_model(str(out))
    assert not [r for r in caplog.records if "lm_head" in r.message or "tied" in r.message]
    assert isinstance(first.lm_head, TiedHead if tied else QLinear)
    first.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    second, _ = load_model(str(tmp_path / "again"))
    assert torch.equal(logits(second), logits(first))


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_holds_them_and_other_contracts_refuse(tied: bool, tmp_path: Path) -> None:
    """A file of Q8_0 with a Q8_0 table goes out and comes back to the same model."""
    rows = QuantSpec(formats.INT8, (1, -1), formats.FP16)
    spec = LayerSpec(rows).to_json()
    rules = [("lm_head", spec), ("*", spec)]
    rules += [] if tied else [("model.embed_tokens", spec)]
    sizes = {"vocab_size": tiny_folders.VOCABULARY, "intermediate_size": 64}
    _, packed, report = quantized(*rules, tied=tied, **sizes)
    source = tmp_path / "packed"
    source.mkdir()
    save(packed, Plan.from_json(report["plan"]), source)
    for to in CONTRACTS:
        with pytest.raises(UserError, match="keep embeddings and the output head"):
            export(source, to, tmp_path / to)
    AutoTokenizer.from_pretrained(tiny_folders.TOKENIZER).save_pretrained(source)
    export_gguf(source, tmp_path / "gguf")
    assert compare(tmp_path / "gguf", open_native(source)) == []
    back, _ = load(str(tmp_path / "gguf"))
    assert isinstance(back.model.embed_tokens, QEmbedding)
    assert isinstance(back.lm_head, TiedHead if tied else QLinear)
    assert torch.allclose(logits(back), logits(packed), atol=1e-5)


def test_a_loaded_model_generates_with_a_compiled_step(tmp_path: Path) -> None:
    model, _ = load_model(str(job(tmp_path, "packed")))
    config = CompileConfig(backend="eager", mode="default", fullgraph=True)
    config._compile_all_devices = True
    how: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    compiled = {"cache_implementation": "static", "compile_config": config}
    torch._dynamo.reset()
    found = model.generate(IDS[:1, :8], **how, **compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch.equal(found, model.generate(IDS[:1, :8], **how))


def test_block_by_block_and_after_a_stop_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    wanted = digest(job(tmp_path, "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(method, "quantize_outside", stop)
        job(tmp_path, "stopped")
    assert digest(job(tmp_path, "stopped", resume=True)) == wanted
    monkeypatch.setattr(text, "_is_too_large", lambda job: True)
    assert digest(job(tmp_path, "lazy")) == wanted


def digest(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
