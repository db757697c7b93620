"""A GGUF file of any writer, seen as a contract's folder: names and rows as transformers has them.

Q8_0, Q4_0, Q4_1 and MXFP4 matrices are layers of ours as they lie; every other tensor
is decoded. Of Q4_1 the offsets are read, because they alone say whether a zero point holds them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Refusal, Scheme
from minifloat.export.contract_folder import ContractFolder
from minifloat.export.gguf import model, names, tokenizer
from minifloat.export.gguf.blocks import BLOCKS
from minifloat.export.gguf.package import load_package
from minifloat.shards import Entry

_PACKED = ("_proj.weight", "embed_tokens.weight", "lm_head.weight")
_PLAIN = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class GgufFolder(ContractFolder):
    """One GGUF file.

    Attributes:
        types: GGML's type of every tensor by transformers' name.
        fields: the file's metadata, by the keys of `gguf.GGUFReader`.
    """

    types: dict[str, str]
    fields: dict[str, Any]

    def tensors(self, layer: str) -> dict[str, Tensor]:
        return {s: self._in_order(layer, t) for s, t in super().tensors(layer).items()}

    def plain(self, name: str) -> Tensor:
        tensor = self.entries[name].read()
        if self.types[name] not in _PLAIN:
            tensor = _decoded(tensor, self.types[name], name)
        return self._in_order(name.rpartition(".")[0], tensor)

    def write_companions(self, out: Path) -> None:
        """The tokenizer of the metadata, or the one that lies beside the file."""
        beside = self.path.with_name("tokenizer.json")
        if beside.is_file():
            (out / "tokenizer.json").write_text(beside.read_text())
        elif own := _of(self.fields, "tokenizer.ggml."):
            try:
                content, settings = tokenizer.from_fields(own)
            except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
                raise UserError(f"the tokenizer in {self.path} is damaged ({error})") from error
            (out / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")
            (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        template = self.fields.get("tokenizer.chat_template")
        if isinstance(template, str):
            (out / "chat_template.jinja").write_text(template)

    def _in_order(self, module: str, tensor: Tensor) -> Tensor:
        return tensor[names.row_order(module, tensor.shape[0], self.config).argsort()]


def open_gguf(path: Path) -> GgufFolder:
    """Read a file's header.

    Raises:
        UserError: it is damaged, no Llama, or one part of several.
    """
    gguf = load_package()
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        rows = [
            (tensor.name, tensor.tensor_type.name, _entry(path, tensor))
            for tensor in reader.tensors
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged or no GGUF file ({error})") from error
    if fields.get("general.architecture") != "llama":
        raise UserError(
            f"of GGUF files those of Llama are read, not {fields.get('general.architecture')!r}; "
            "'minifloat quantize FILE.gguf' decodes what transformers reads"
        )
    if fields.get("split.count", 1) > 1 or reader.byte_order != "I":
        raise UserError(f"{path} is a part of several, or big-endian; merge or convert it first")
    found = {_ours(name): (kind, entry) for name, kind, entry in rows}
    entries = {name: entry for name, (_, entry) in sorted(found.items())}
    config = model.from_fields(_of(fields, "llama."), set(entries))
    special = _of(fields, "tokenizer.ggml.")
    config |= {k: special[k] for k in ("bos_token_id", "eos_token_id") if k in special}
    types = {name: kind for name, (kind, _) in found.items()}
    schemes = _layers(entries, types)
    config["quantization_config"] = BLOCKS.config(schemes, [])
    if not schemes:
        raise UserError(
            f"no linear layer in {path} is Q8_0, Q4_0, MXFP4 or Q4_1 with whole zero points; "
            "'minifloat quantize FILE.gguf' decodes such files"
        )
    folder = GgufFolder(path, "gguf", BLOCKS, config, schemes, entries, types, fields)
    for name in schemes:
        _check_heads(folder, name)
    return folder


def _entry(path: Path, tensor: Any) -> Entry:
    """Where a tensor lies; blocks are rows of bytes."""
    kind = tensor.tensor_type.name
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if kind not in _PLAIN:
        kind, shape = "U8", tuple(int(size) for size in tensor.data.shape)
    return Entry(path, int(tensor.data_offset), kind, shape)


def _ours(name: str) -> str:
    found = names.ours(name)
    if found is None:
        raise UserError(f"transformers' Llama has no tensor for {name!r} of the GGUF file")
    return found


def _layers(entries: dict[str, Entry], types: dict[str, str]) -> dict[str, Scheme]:
    """Layers whose type is one of ours: linear ones, the embedding and the head."""
    modules = [n.removesuffix(".weight") for n in entries if n.endswith(_PACKED)]
    kinds = {name: types[f"{name}.weight"] for name in modules}
    schemes = BLOCKS.schemes({"types": kinds}, {name: {"weight"} for name in modules})
    return {name: scheme for name, scheme in schemes.items() if _held(entries, name, scheme)}


def _held(entries: dict[str, Entry], name: str, scheme: Scheme) -> bool:
    if scheme["type"] != "Q4_1":
        return True
    try:
        BLOCKS.read(scheme, {"weight": entries[f"{name}.weight"].read()})
    except Refusal:
        return False
    return True


def _check_heads(folder: GgufFolder, name: str) -> None:
    rows = folder.entries[f"{name}.weight"].shape[0]
    try:
        names.row_order(name, rows, folder.config)
    except RuntimeError as error:
        raise UserError(f"{name} has {rows} rows, which are no pairs of its heads") from error


def _decoded(raw: Tensor, kind: str, name: str) -> Tensor:
    """A tensor of another block type in fp32."""
    gguf = load_package()
    try:
        values = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise UserError(f"the gguf package cannot decode {name}, which is {kind}") from error
    return torch.from_numpy(values)


def _of(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
