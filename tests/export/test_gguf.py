"""The gguf package and transformers' GGUF reader judge our files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from minifloat import formats
from minifloat.errors import UserError
from minifloat.export.contract import Refusal
from minifloat.export.gguf.blocks import BLOCKS
from minifloat.export.gguf.write import FILE, export_gguf
from minifloat.qtensor import decode
from minifloat.spec import FP8_TOKEN, INT8_CHANNEL, MXFP4, LayerSpec, QuantSpec
from tests.export.cases import layer_of
from tests.export.conftest import Build, config_of
from tests.export.test_judge_compressed_tensors import load

INT4 = LayerSpec(QuantSpec(formats.INT4, (1, 32), formats.FP16))
SPECS = {
    "Q8_0": LayerSpec(QuantSpec(formats.INT8, (1, 32), formats.FP16)),
    "Q4_0": INT4,
    "Q4_0 of groups of 128": LayerSpec(QuantSpec(formats.INT4, (1, 128), formats.FP16)),
    "Q4_0 of rows": LayerSpec(QuantSpec(formats.INT4, (1, -1), formats.FP16)),
    "Q4_0 of E1M2": LayerSpec(QuantSpec(formats.E1M2, (1, 64), formats.FP16)),
    "MXFP4": LayerSpec(MXFP4),
}


TOKENIZER = Path(__file__).parents[2] / "zoo" / "llama-tiny" / "tokenizer.json"


def small_tokenizer() -> dict[str, Any]:
    """That of the zoo's Llama with the 160 tokens that the tests' model has, and one merge."""
    found: dict[str, Any] = json.loads(TOKENIZER.read_text())
    vocab = {token: i for token, i in found["model"]["vocab"].items() if i < 159} | {"ab": 159}
    found["model"] |= {"vocab": vocab, "merges": [["a", "b"]]}
    return found


@pytest.mark.parametrize("case", SPECS)
def test_the_package_decodes_our_blocks_to_our_values_and_so_do_we(case: str) -> None:
    layer = layer_of(SPECS[case])
    scheme = BLOCKS.scheme(layer.spec, (256, 384))
    assert scheme["type"] == case.split(maxsplit=1)[0]
    number = getattr(gguf.GGMLQuantizationType, scheme["type"])
    raw = BLOCKS.tensors(layer, scheme)
    found = gguf.quants.dequantize(raw["weight"].numpy(), number)
    assert np.array_equal(found, decode(layer.q).numpy())
    again = BLOCKS.read(scheme, raw)
    assert np.array_equal(found, decode(again.q).numpy())
    assert torch.equal(BLOCKS.tensors(again, scheme)["weight"], raw["weight"])


def test_asymmetric_blocks_only_where_the_offset_is_exact() -> None:
    layer = layer_of(LayerSpec(QuantSpec(formats.UINT4, (1, 32), formats.FP16, zero_point=True)))
    with pytest.raises(Refusal, match="no fp16 number"):
        BLOCKS.tensors(layer, BLOCKS.scheme(layer.spec, (256, 384)))
    rounded = layer.q.scale.stored.view(torch.int16) & ~15  # seven bits of a scale times four
    exact = layer.q.scale._replace(stored=rounded.view(torch.float16))
    layer = replace(layer, q=replace(layer.q, scale=exact))
    blocks = BLOCKS.tensors(layer, {"type": "Q4_1"})["weight"]
    found = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q4_1)
    assert np.array_equal(found, decode(layer.q).numpy())
    again = BLOCKS.read({"type": "Q4_1"}, {"weight": blocks})
    assert torch.equal(again.q.codes, layer.q.codes)
    assert str(again.q.scale.zero) == str(layer.q.scale.zero)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LayerSpec(INT8_CHANNEL), "no block holds"),
        (LayerSpec(MXFP4, FP8_TOKEN), "nothing of inputs"),
        (LayerSpec(QuantSpec(formats.INT4, (1, 48), formats.FP16)), "a multiple of 32"),
    ],
)
def test_other_layers_are_refused(spec: LayerSpec, words: str) -> None:
    with pytest.raises(Refusal, match=words):
        BLOCKS.scheme(spec, (256, 384))


@pytest.mark.parametrize("case", ["Q8_0", "Q4_0", "MXFP4"])
def test_transformers_reads_the_file_to_our_logits(case: str, build: Build, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = build(SPECS[case])
    done = export_gguf(source, tmp_path / "out")
    assert done["layers"] == 14
    ours = load(source)
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file=FILE, dtype=torch.float32
    )
    tokens = torch.arange(64).view(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens).logits)


def test_the_same_bytes_and_the_tokenizer(build: Build, tmp_path: Path) -> None:
    source = build(INT4)
    (source / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    for out in ("one", "two"):
        export_gguf(source, tmp_path / out)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    reader = gguf.GGUFReader(tmp_path / "one" / FILE)
    field = reader.get_field("tokenizer.ggml.tokens")
    assert field is not None
    assert field.contents()[:1] == ["<|endoftext|>"]


def test_other_models_are_refused(build: Build, tmp_path: Path) -> None:
    source = build(INT4)
    config = config_of(source) | {"model_type": "opt"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="Llama models, not opt"):
        export_gguf(source, tmp_path / "out")
    source = build(LayerSpec(QuantSpec(formats.E3M2, (1, 32))), name="other")
    with pytest.raises(UserError, match="humming and sdnq can"):
        export_gguf(source, tmp_path / "out")
