"""A GGUF file for llama.cpp, transformers and others, written tensor by tensor with the gguf package.

Llama-shaped models with a byte-level BPE tokenizer. Rows of q and k are reordered, because llama.cpp
turns neighbouring pairs where transformers turns the two halves of a head.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Refusal, Shape
from minifloat.export.contracts import alternatives
from minifloat.export.gguf.blocks import BLOCK, BYTES, blocks, kind_of
from minifloat.export.native import whole_or_nothing
from minifloat.export.native_folder import NativeFolder, open_native, refuse_special
from minifloat.qtensor import QTensor
from minifloat.scales import Scale

FILE = "model.gguf"


def export_gguf(source: Path, out: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Write a checkpoint of ours as a folder with one GGUF file.

    Returns:
        Bytes of the tensors before and of the file after, and the number of layers.

    Raises:
        UserError: gguf is not installed, the model is no Llama, or a layer has no block type.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "GGUF files need the package gguf; pip install 'minifloat[gguf]'"
        ) from error
    folder = open_native(source)
    if weights_only:
        folder = folder.weights_only()
    if folder.config.get("model_type") != "llama":
        raise UserError(f"GGUF is written for Llama models, not {folder.config.get('model_type')}")
    kinds = {name: _kind(folder, name) for name in folder.specs}
    with whole_or_nothing(out) as partial:
        writer = gguf.GGUFWriter(None, "llama")
        _describe(writer, folder)
        count = folder.config["num_hidden_layers"]
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, count)
        plan = list(_plan(folder, kinds))
        for name, shape, dtype in plan:
            size = shape[0] * (shape[1] if len(shape) == 2 else 1)
            raw = getattr(gguf.GGMLQuantizationType, dtype)
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if target is None:
                raise UserError(f"GGUF's Llama has no tensor for {name}")
            writer.add_tensor_info(target, shape, np.dtype("uint8"), size, raw)
        writer.write_header_to_file(partial / FILE)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, _ in plan:
            writer.write_tensor_data(_bytes(folder, name, kinds).numpy())
        writer.close()
        (partial / "export.json").write_text(json.dumps({"contract": "gguf"}) + "\n")
        after = (partial / FILE).stat().st_size
    before = sum(entry.bytes for entry in folder.entries.values())
    return {"before": before, "after": after, "layers": len(kinds)}


def _kind(folder: NativeFolder, name: str) -> str:
    """A layer's block type, or the refusal in the user's words."""
    spec, shape = folder.specs[name], folder.shape(name)
    refuse_special(folder, name, "gguf")
    try:
        return kind_of(spec, shape)
    except Refusal as error:
        hint = alternatives(spec, shape)
        raise UserError(f"gguf cannot hold {name}: {error}; {hint}") from error


def _plan(folder: NativeFolder, kinds: dict[str, str]) -> Iterator[tuple[str, Shape, str]]:
    """Every tensor's name, its shape in bytes and its GGML type."""
    for name in folder.others():
        entry = folder.entries[name]
        dtype = _kept_type(entry.dtype, entry.shape)
        width = {"F32": 4, "F16": 2, "BF16": 2}[dtype]
        yield name, (*entry.shape[:-1], entry.shape[-1] * width), dtype  # type: ignore[misc]
    for name, kind in kinds.items():
        rows, columns = folder.shape(name)
        yield f"{name}.weight", (rows, columns // BLOCK * BYTES[kind]), kind


def _kept_type(dtype: str, shape: tuple[int, ...]) -> str:
    """Matrices keep their type; llama.cpp wants vectors in fp32."""
    return dtype if len(shape) == 2 and dtype in ("F32", "F16", "BF16") else "F32"


def _bytes(folder: NativeFolder, name: str, kinds: dict[str, str]) -> Tensor:
    """One tensor as bytes, in llama.cpp's order of rows."""
    module = name.removesuffix(".weight")
    if module in kinds:
        layer = folder.layer(module)
        order = _row_order(folder, module, layer.q.shape[0])
        try:
            return blocks(_reordered(layer, order), kinds[module])
        except Refusal as error:
            raise UserError(f"gguf cannot hold {module}: {error}") from error
    tensor = folder.entries[name].read()
    if _kept_type(folder.entries[name].dtype, tuple(tensor.shape)) == "F32":
        tensor = tensor.float()
    tensor = tensor[_row_order(folder, name.rpartition(".")[0], tensor.shape[0])]
    return tensor.contiguous().view(torch.uint8)


def _row_order(folder: NativeFolder, module: str, rows: int) -> Tensor:
    """Rows of q and k: halves of a head to neighbouring pairs; all others as they are."""
    leaf = module.rpartition(".")[2]
    order = torch.arange(rows)
    if leaf not in ("q_proj", "k_proj"):
        return order
    key = "num_attention_heads" if leaf == "q_proj" else "num_key_value_heads"
    heads = folder.config[key]
    return order.reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def _reordered(layer: Layer, order: Tensor) -> Layer:
    q, zero = layer.q, layer.q.scale.zero
    scale = Scale(q.scale.stored[order], None, None if zero is None else zero[order])
    return Layer(layer.spec, QTensor(q.codes[order], scale, q.spec, q.shape))


def _describe(writer: Any, folder: NativeFolder) -> None:
    """The model's sizes and its tokenizer."""
    config = folder.config
    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"GGUF is written without rope scaling, not with {rope['rope_type']!r}")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    head = config.get("head_dim") or width // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads", heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    path = folder.path / "tokenizer.json"
    if path.is_file():
        _tokenizer(writer, json.loads(path.read_text()), config)


def _tokenizer(writer: Any, found: dict[str, Any], config: dict[str, Any]) -> None:
    """A byte-level BPE tokenizer, split as GPT-2 splits; llama.cpp knows others only by name."""
    model, before = found["model"], found.get("pre_tokenizer") or {}
    if (
        model["type"] != "BPE"
        or before.get("type") != "ByteLevel"
        or not before.get("use_regex", True)
    ):
        raise UserError("GGUF is written with byte-level BPE tokenizers that split as GPT-2 does")
    added = {row["id"]: row["content"] for row in found.get("added_tokens", [])}
    by_id = {number: token for token, number in model["vocab"].items()} | added
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
    # GGUF's token types: 1 normal, 3 control, 5 unused.
    writer.add_token_types([3 if i in added else 1 if i in by_id else 5 for i in range(size)])
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_token_merges(merges)
    for key, add in (
        ("bos_token_id", writer.add_bos_token_id),
        ("eos_token_id", writer.add_eos_token_id),
    ):
        if isinstance(config.get(key), int):
            add(config[key])
