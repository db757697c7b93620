"""A GGUF file for llama.cpp, transformers and others, written tensor by tensor with the gguf package."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Refusal, Shape
from minifloat.export.contracts import alternatives
from minifloat.export.gguf import model, names, tokenizer
from minifloat.export.gguf.blocks import BLOCK, BLOCKS, BYTES
from minifloat.export.gguf.package import load_package
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
    gguf = load_package()
    folder = open_native(source)
    if weights_only:
        folder = folder.weights_only()
    kinds = {name: _kind(folder, name) for name in folder.specs}
    sizes = model.to_fields(folder.config)
    with whole_or_nothing(out) as partial, closing(gguf.GGUFWriter(None, "llama")) as writer:
        for key, value in sizes.items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"llama.{key}", value)
        _describe(writer, folder)
        plan = list(_plan(folder, kinds))
        for name, shape, dtype in plan:
            size = shape[0] * (shape[1] if len(shape) == 2 else 1)
            raw = getattr(gguf.GGMLQuantizationType, dtype)
            target = names.theirs(name)
            if target is None:
                raise UserError(f"GGUF's Llama has no tensor for {name}")
            writer.add_tensor_info(target, shape, np.dtype("uint8"), size, raw)
        writer.write_header_to_file(partial / FILE)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, _, _ in plan:
            writer.write_tensor_data(_bytes(folder, name, kinds).numpy())
        (partial / "export.json").write_text(json.dumps({"contract": "gguf"}) + "\n")
    after = (out / FILE).stat().st_size
    before = sum(entry.bytes for entry in folder.entries.values())
    return {"before": before, "after": after, "layers": len(kinds)}


def _describe(writer: Any, folder: NativeFolder) -> None:
    """The tokenizer and its chat template, where the folder has them."""
    path = folder.path / "tokenizer.json"
    if path.is_file():
        found = tokenizer.to_fields(json.loads(path.read_text()), folder.config)
        for key, value in found.items():
            add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
            add[type(value)](f"tokenizer.ggml.{key}", value)
    template = folder.path / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def _kind(folder: NativeFolder, name: str) -> str:
    """A layer's block type, or the refusal in the user's words."""
    spec, shape = folder.specs[name], folder.shape(name)
    refuse_special(folder, name, "gguf", outside=True)
    try:
        return str(BLOCKS.scheme(spec, shape)["type"])
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
    module = name.rpartition(".")[0]
    if module in kinds and name.endswith(".weight"):
        layer = folder.layer(module)
        order = names.row_order(module, layer.q.shape[0], folder.config)
        try:
            return BLOCKS.tensors(_reordered(layer, order), {"type": kinds[module]})["weight"]
        except Refusal as error:
            raise UserError(f"gguf cannot hold {module}: {error}") from error
    tensor = folder.entries[name].read()
    if _kept_type(folder.entries[name].dtype, tuple(tensor.shape)) == "F32":
        tensor = tensor.float()
    tensor = tensor[names.row_order(module, tensor.shape[0], folder.config)]
    return tensor.contiguous().view(torch.uint8)


def _reordered(layer: Layer, order: Tensor) -> Layer:
    q, zero = layer.q, layer.q.scale.zero
    scale = Scale(q.scale.stored[order], None, None if zero is None else zero[order])
    return Layer(layer.spec, QTensor(q.codes[order], scale, q.spec, q.shape))
