"""GGUF files come back: ours byte for byte, those of other writers as they lie or decoded."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from minifloat import formats
from minifloat import load as minifloat_load
from minifloat.errors import UserError
from minifloat.export.compare import compare
from minifloat.export.gguf import tokenizer
from minifloat.export.gguf.blocks import BLOCKS
from minifloat.export.gguf.write import FILE, export_gguf
from minifloat.export.native_folder import open_native
from minifloat.export.open_contract import open_contract
from minifloat.export.read import read_folder
from minifloat.export.verify import parse_reader, verify
from minifloat.export.write import export
from minifloat.layers import QLinear
from minifloat.qtensor import decode
from minifloat.spec import MXFP4, LayerSpec, QuantSpec
from tests.command_line import minifloat
from tests.export.conftest import Build
from tests.export.test_gguf import INT4, SPECS, TOKENIZER, small_tokenizer
from tests.export.test_judge_compressed_tensors import load

TOKENIZER_CONFIG = TOKENIZER.with_name("tokenizer_config.json")
DOWN, K = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.k_proj"


def row(*parts: list[int]) -> torch.Tensor:
    return torch.tensor([[byte for part in parts for byte in part]], dtype=torch.uint8)


# fp16 0.5 is 0x3800, 2 is 0x4000, -6 is 0xC600; low nibbles are columns 0 to 15.
NIBBLES = [0x0F, 0x98] + [0x88] * 14
GOLDEN: dict[str, tuple[torch.Tensor, list[float]]] = {
    "Q8_0": (row([0x00, 0x38], [1, 255, 128] + [0] * 29), [0.5, -0.5, -64.0] + [0.0] * 29),
    "Q4_0": (row([0x00, 0x38], NIBBLES), [3.5] + [0.0] * 15 + [-4.0, 0.5] + [0.0] * 14),
    "Q4_1": (
        row([0x00, 0x40], [0x00, 0xC6], [0x3F] + [0x33] * 15),  # 2 * q - 6
        [24.0] + [0.0] * 31,
    ),
    # 2^2 times codes 1 (0.5) and 2 (1.0), and then 9 (-0.5) and 15 (-6)
    "MXFP4": (
        row([129], [0x91, 0xF2] + [0] * 14),
        [2.0, 4.0] + [0.0] * 14 + [-2.0, -24.0] + [0.0] * 14,
    ),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_blocks_decode_to_the_numbers_on_paper(kind: str) -> None:
    raw, values = GOLDEN[kind]
    layer = BLOCKS.read({"type": kind}, {"weight": raw})
    assert decode(layer.q).tolist() == [values]
    assert torch.equal(BLOCKS.tensors(layer, {"type": kind})["weight"], raw)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_of_the_package_are_read_to_its_values(kind: str) -> None:
    """Its quantizer gives Q4_0 negative scales, which ours never does."""
    number = gguf.GGMLQuantizationType[kind]
    w = np.random.default_rng(0).standard_normal((64, 128), dtype=np.float32)
    raw = gguf.quants.quantize(w, number)
    layer = BLOCKS.read({"type": kind}, {"weight": torch.from_numpy(raw)})
    assert np.array_equal(decode(layer.q).numpy(), gguf.quants.dequantize(raw, number))
    assert (layer.q.scale.stored < 0).any() == (kind == "Q4_0")


# Half an E1M2 scale of this model's smallest rows has no fp16 number; its blocks are in `test_gguf`.
@pytest.mark.parametrize("case", [case for case in SPECS if "E1M2" not in case])
def test_export_import_export_is_byte_identical(case: str, build: Build, tmp_path: Path) -> None:
    half = case == "MXFP4"  # whose embeddings are then kept as BF16 and norms widened
    source = build(SPECS[case], dtype=torch.bfloat16 if half else torch.float32)
    (source / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export_gguf(source, tmp_path / "one")
    assert read_folder(tmp_path / "one", tmp_path / "back") == 14
    export_gguf(tmp_path / "back", tmp_path / "two")
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    assert compare(tmp_path / "one", open_native(source)) == []


def test_the_imported_model_gives_the_same_logits(build: Build, tmp_path: Path) -> None:
    source, tokens = build(INT4), torch.arange(64).view(2, 32)
    export_gguf(source, tmp_path / "one")
    read_folder(tmp_path / "one", tmp_path / "back")
    with torch.no_grad():
        one, two = load(source)(tokens).logits, load(tmp_path / "back")(tokens).logits
    assert torch.equal(one, two)


def test_one_call_loads_what_others_wrote(build: Build, tmp_path: Path) -> None:
    source, tokens = build(INT4), torch.arange(64).view(2, 32)
    (source / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    shutil.copy(TOKENIZER_CONFIG, source)
    export_gguf(source, tmp_path / "gguf")
    export(source, "compressed-tensors", tmp_path / "ct")
    found = [minifloat_load(str(f))[0] for f in (source, tmp_path / "gguf", tmp_path / "ct")]
    assert all(isinstance(m.get_submodule(DOWN), QLinear) for m in found)
    with torch.no_grad():
        wanted, *others = (model(tokens).logits for model in found)
    assert all(torch.equal(logits, wanted) for logits in others)


def test_the_tokenizer_comes_back() -> None:
    found = json.loads(TOKENIZER.read_text())
    size = len(found["model"]["vocab"])
    fields = tokenizer.to_fields(found, {"vocab_size": size + 3, "eos_token_id": 0})
    assert fields["token_type"][:2] + fields["token_type"][-3:] == [3, 1, 5, 5, 5]
    back, settings = tokenizer.from_fields(fields)
    assert settings["eos_token"] == "<|endoftext|>"
    ours, theirs = (Tokenizer.from_str(json.dumps(content)) for content in (found, back))
    text = "It's a  test of 12 tokens,\n with Ünïcode.<|endoftext|>"
    assert theirs.encode(text).ids == ours.encode(text).ids
    assert theirs.decode(theirs.encode(text).ids) == ours.decode(ours.encode(text).ids)
    with pytest.raises(UserError, match=f"has {size} tokens and the model 160"):
        tokenizer.to_fields(found, {"vocab_size": 160})
    with pytest.raises(UserError, match=r"put the model's tokenizer.json beside the file"):
        tokenizer.from_fields(fields | {"pre": "tekken"})


def foreign(folder: Path, source: Path, kinds: dict[str, str]) -> Path:
    """Our file once more with tensors quantized by the package, as other writers have them."""
    export_gguf(source, folder)
    old = gguf.GGUFReader(folder / FILE)
    writer = gguf.GGUFWriter(folder / "other.gguf", "llama")
    for key, field in old.fields.items():
        if key.startswith("llama."):
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in old.tensors:
        kind = gguf.GGMLQuantizationType[kinds.get(tensor.name, tensor.tensor_type.name)]
        data: Any = tensor.data
        if tensor.name in kinds:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            data = gguf.quants.quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "other.gguf"


def test_a_file_of_another_writer(build: Build, tmp_path: Path) -> None:
    """Blocks of ours stay packed, the embedding too; Q5_0 and Q4_1 with any offset are decoded."""
    kinds = {
        "token_embd.weight": "Q8_0",
        "blk.0.attn_q.weight": "Q5_0",
        "blk.0.ffn_down.weight": "Q8_0",
        "blk.0.ffn_up.weight": "Q4_0",  # with negative scales
        "blk.1.ffn_up.weight": "Q4_1",
    }
    file = foreign(tmp_path / "gguf", build(INT4), kinds)
    assert read_folder(file, tmp_path / "back") == 13
    specs = open_native(tmp_path / "back").specs
    assert specs[DOWN].weight == QuantSpec(formats.INT8, (1, 32), formats.FP16)
    assert load_file(tmp_path / "back" / "model.safetensors")[f"{K}.weight"].dtype == torch.uint8
    theirs: Any = _decoded_by_transformers(file)
    tokens = torch.arange(64).view(2, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path / "back")(tokens).logits, theirs(tokens).logits, rtol=1e-4, atol=1e-4
        )


def _decoded_by_transformers(file: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )


def _edit(file: Path, name: str, change: Any) -> None:
    """Change the bytes of one tensor in place."""
    reader = gguf.GGUFReader(file, "r+")
    tensor = next(t for t in reader.tensors if t.name == name)
    data = tensor.data.view(np.uint8)
    data[...] = change(data)
    reader.data.flush()


def _halves_swapped(rows: Any) -> Any:
    order = np.arange(rows.shape[0]).reshape(2, 2, -1).transpose(0, 2, 1).reshape(-1)
    return rows[order]


def _bias(rows: Any) -> Any:
    rows = rows.copy()
    rows.reshape(-1, 17)[:, 0] += 1
    return rows


def _nibbles(rows: Any) -> Any:
    rows = rows.copy()
    codes = rows.reshape(-1, 17)[:, 1:]
    codes[...] = codes << 4 | codes >> 4
    return rows


MUTATIONS = {
    "the order of rows": ("blk.0.attn_k.weight", _halves_swapped, f"{K}: "),
    "exponent": ("blk.0.ffn_down.weight", _bias, f"{DOWN}: "),
    "nibbles": ("blk.0.ffn_down.weight", _nibbles, f"{DOWN}: "),
    "norm": ("output_norm.weight", lambda data: data ^ 1, "model.norm.weight is not the same"),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_every_mutation_is_caught(case: str, build: Build, tmp_path: Path) -> None:
    name, change, words = MUTATIONS[case]
    source = build(LayerSpec(MXFP4))
    export_gguf(source, tmp_path / "out")
    _edit(tmp_path / "out" / FILE, name, change)
    (problem,) = compare(tmp_path / "out", open_native(source))
    assert problem.startswith(words)


def test_the_commands(build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = build(INT4), tmp_path / "out" / FILE
    assert minifloat("export", source, "--to", "gguf", "--out", file.parent) == 0
    assert minifloat("verify", file, "--deep", "--against", source) == 0
    assert minifloat("verify", file.parent, "--for", "vllm") == 1
    assert minifloat("import", file, "--out", tmp_path / "back") == 0
    verdicts = {f.reader.partition("==")[0]: (f.verdict, f.rule) for f in verify(file)}
    assert verdicts == {
        "vllm": ("refuses", "no-reader"),
        "sglang": ("loads", ""),
        "transformers": ("loads", ""),
        "diffusers": ("refuses", "gguf-of-transformers"),
        "llama.cpp": ("differs", "inputs-in-8-bits"),
    }
    assert parse_reader("llama.cpp") == {"llama.cpp": (0, 5, 0)}


def test_what_is_not_read(build: Build, tmp_path: Path) -> None:
    source = build(INT4)
    every = {f"blk.{i}.ffn_{x}.weight": "Q5_0" for i in (0, 1) for x in ("up", "gate", "down")}
    every |= {f"blk.{i}.attn_{x}.weight": "Q5_0" for i in (0, 1) for x in ("q", "k", "v", "output")}
    file = foreign(tmp_path / "five", source, every)
    with pytest.raises(UserError, match=r"no linear layer in .* decodes such files"):
        open_contract(file)
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(UserError, match="damaged or no GGUF file"):
        open_contract(short)
    (source / "tokenizer.json").write_text(json.dumps(small_tokenizer()))
    export_gguf(source, tmp_path / "damaged")
    data = (tmp_path / "damaged" / FILE).read_bytes()
    (tmp_path / "damaged" / FILE).write_bytes(data.replace(b"ggml.token_type", b"ggml.token_tipe"))
    with pytest.raises(UserError, match=r"the tokenizer in .* is damaged"):
        read_folder(tmp_path / "damaged", tmp_path / "back")
    (tmp_path / "damaged" / FILE).write_bytes(data.replace(b"rms_epsilon", b"rms_epsylon"))
    with pytest.raises(UserError, match="says None of its norms"):
        open_contract(tmp_path / "damaged")
    writer = gguf.GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="those of Llama are read, not 'qwen2'"):
        open_contract(tmp_path / "qwen.gguf")


def test_tokenizers_that_split_in_other_ways(build: Build, tmp_path: Path) -> None:
    source = build(INT4)
    found = small_tokenizer()
    digits = {"type": "Digits", "individual_digits": True}
    sequence = {"type": "Sequence", "pretokenizers": [digits, found["pre_tokenizer"]]}
    (source / "tokenizer.json").write_text(json.dumps(found | {"pre_tokenizer": sequence}))
    export_gguf(source, tmp_path / "smollm")
    assert open_contract(tmp_path / "smollm").fields["tokenizer.ggml.pre"] == "smollm"  # type: ignore[attr-defined]
    (source / "tokenizer.json").write_text(json.dumps(found | {"pre_tokenizer": digits}))
    with pytest.raises(UserError, match="that split as gpt-2 or smollm does"):
        export_gguf(source, tmp_path / "no")
