"""Loading: what works, and the sentence for everything that does not."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from minifloat.errors import UserError
from minifloat.models.load import _forget_gguf, load_model, read_tokens, sample_windows

ZOO = Path(__file__).parents[2] / "zoo" / "llama-tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ZOO, tmp_path / "model"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(ZOO)


def test_folder() -> None:
    model, tokenizer = load_model(str(ZOO))
    assert model.dtype == torch.float16
    assert not model.training
    assert len(tokenizer) == 2048
    assert load_model(str(ZOO), dtype="float32")[0].dtype == torch.float32


def test_missing_sources(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nothing"), "./nothing", "nothing", "a/b/c"):
        with pytest.raises(UserError, match="there is no folder"):
            load_model(source)
    with pytest.raises(UserError, match="name a model"):
        load_model("")
    with pytest.raises(UserError, match="there is no file"):
        load_model(str(tmp_path / "nothing.gguf"))


def test_not_a_model(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        load_model(str(folder / "config.json"))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config"):
        load_model(str(folder))


def test_weights_absent_or_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="never unpickles; convert to safetensors"):
        load_model(str(folder))


@pytest.mark.parametrize("keep", [0, 5, 200, 100_000])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged or cut off"):
        load_model(str(folder))


def test_foreign_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights, {"format": "pt"})
    with pytest.raises(
        UserError, match=f"1 tensors are missing or of other shapes, among them '{name}'"
    ):
        load_model(str(folder))
    save_file({**tensors, name: torch.zeros(3, 3)}, weights, {"format": "pt"})
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder))
    weights.write_text("this is not a safetensors file at all")
    with pytest.raises(UserError, match="damaged or cut off"):
        load_model(str(folder))


def test_remote_code_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder))


def test_damaged_config_and_gguf(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder))
    (folder / "x.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder / "x.gguf"))


def test_hub_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match="could not get 'some/model' from the hub"):
        load_model("some/model")


def test_transformers_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'minifloat\[hf\]'"):
        load_model(str(ZOO))


def test_dtype_and_device() -> None:
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        load_model(str(ZOO), dtype="bflot16")
    with pytest.raises(UserError, match="'nowhere' is not available"):
        load_model(str(ZOO), device="nowhere")


def test_forgetting_gguf_lets_the_model_be_saved(tmp_path: Path) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    model, _ = load_model(str(ZOO))
    state: Any = {"quant_method": "gguf"}
    model.config.quantization_config = state
    model.hf_quantizer = AutoHfQuantizer.from_config({"quant_method": "fp8"})
    model.quantization_method = "gguf"
    _forget_gguf(model)
    assert model.hf_quantizer is None
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()


def test_read_tokens(tokenizer: Any, tmp_path: Path) -> None:
    text = "The state of the Union is strong — naïve, but strong.\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    plain = read_tokens(tokenizer, tmp_path / "a.txt")
    assert plain.dtype == torch.int64
    assert plain.dim() == 1
    assert tokenizer.decode(plain) == text
    assert torch.equal(plain, read_tokens(tokenizer, str(tmp_path / "a.txt.gz")))


def test_packaged_texts(tokenizer: Any) -> None:
    calibration = read_tokens(tokenizer, None)
    heldout = read_tokens(tokenizer, None, default="heldout")
    assert len(calibration) > len(heldout) > 10_000


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b"e", "fewer than 2 tokens"),
        ("a.gz", b"text", "not a whole gzip"),
        ("a.gz", gzip.compress(b"a long text" * 99, mtime=0)[:-9], "not a whole gzip"),
    ],
)
def test_bad_texts(tokenizer: Any, tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_tokens(tokenizer, tmp_path / name)


def test_unreadable_texts(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_tokens(tokenizer, tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="cannot read"):
        read_tokens(tokenizer, tmp_path)


def test_sample_windows() -> None:
    tokens = torch.arange(100) * 3
    found = sample_windows(tokens, 50, 7, seed=1)
    assert found.shape == (50, 7)
    assert ((found[:, 1:] - found[:, :-1]) == 3).all()
    assert torch.equal(found, sample_windows(tokens, 50, 7, seed=1))
    assert not torch.equal(found, sample_windows(tokens, 50, 7, seed=2))
    assert torch.equal(sample_windows(tokens, 2, 100, seed=1), tokens.expand(2, 100))


def test_sample_windows_mistakes() -> None:
    with pytest.raises(UserError, match="has 5 tokens"):
        sample_windows(torch.arange(5), 1, 6, seed=0)
    with pytest.raises(UserError, match="at least 1"):
        sample_windows(torch.arange(5), 0, 3, seed=0)
