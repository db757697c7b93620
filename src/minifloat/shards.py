"""safetensors files tensor by tensor: a header, a reader and a writer that never hold a whole model.

The file is eight bytes of header length, a JSON header (name: dtype, shape, offsets) and the data
(https://github.com/huggingface/safetensors, "Format"). The package maps whole files, so that every
page it has touched counts as this process's memory; here one tensor is read and let go.
Tensors are written largest dtype first and then by name: aligned, and the same bytes every time.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from minifloat.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its file, the first byte in it, dtype name and shape."""

    file: Path
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            UserError: the file ends before the tensor does.
        """
        data = bytearray(self.bytes)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(data) != self.bytes:
                raise UserError(f"{self.file} is cut off; copy or write it again")
        if not data:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(self.shape)


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder's safetensors files by name, sorted; only headers are read.

    Raises:
        UserError: there is no such file, one is damaged, or two hold the same name.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{str(folder)!r} has no weights: it needs a .safetensors file")
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in entries_of(file):
            if name in found:
                raise UserError(f"{name} is in both {found[name].file.name} and {file.name}")
            found[name] = entry
    return dict(sorted(found.items()))


def stored_bytes(folder: Path) -> int:
    """Of all tensors in a folder's safetensors files."""
    return sum(entry.bytes for entry in entries(folder).values())


def metadata_of(folder: Path) -> dict[str, str]:
    """What the headers of a folder's safetensors files say beside their tensors."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        metadata = _header(path)[1].get("__metadata__", {})
        if not isinstance(metadata, dict):
            raise _damaged(path)
        found |= metadata
    return found


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """A file's header and its length in bytes."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= path.stat().st_size - 8:
                raise _damaged(path)
            header = json.loads(file.read(size))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(header, dict):
        raise _damaged(path)
    return size, header


def _damaged(path: Path) -> UserError:
    return UserError(f"the safetensors weights in {path} are damaged or cut off")


def entries_of(path: Path) -> Iterator[tuple[str, Entry]]:
    """The names and places of one file's tensors."""
    damaged = _damaged(path)
    try:
        size, header = _header(path)
        rows = [(n, row) for n, row in header.items() if n != "__metadata__"]
        for name, row in rows:
            start, end = row["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (start, end, *row["shape"])):
                raise damaged
            entry = Entry(path, 8 + size + start, row["dtype"], tuple(row["shape"]))
            if entry.bytes != end - start or 8 + size + end > path.stat().st_size:
                raise damaged
            yield name, entry
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged from error


@dataclass(frozen=True)
class _Part:
    """Of one stored tensor."""

    entry: Entry

    @property
    def file(self) -> Path:
        return self.entry.file

    @property
    def dtype(self) -> str:
        return self.entry.dtype


@dataclass(frozen=True)
class Columns(_Part):
    """A span of the second dimension of a stored tensor: what one part of a split layer holds."""

    start: int
    size: int

    @property
    def bytes(self) -> int:
        return self.entry.bytes * self.size // self.entry.shape[1]

    def read(self) -> Tensor:
        """The span, in memory of its own."""
        return self.entry.read()[:, self.start : self.start + self.size].clone()


@dataclass(frozen=True)
class Slice(_Part):
    """One entry of a stored tensor's first dimension, such as an expert's part of a fused parameter."""

    index: int
    transposed: bool = False  # of a matrix, before it is handed out

    @property
    def bytes(self) -> int:
        return self.entry.bytes // self.entry.shape[0]

    def read(self) -> Tensor:
        """The slice, in memory of its own; no other is read."""
        start = self.entry.start + self.index * self.bytes
        found = replace(self.entry, start=start, shape=self.entry.shape[1:]).read()
        return found.T.contiguous() if self.transposed else found


@dataclass(frozen=True)
class Joined:
    """Stored tensors one below the other as one of another shape."""

    entries: tuple[Entry, ...]
    shape: tuple[int, ...]

    @property
    def file(self) -> Path:
        return self.entries[0].file

    @property
    def dtype(self) -> str:
        return self.entries[0].dtype

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def read(self) -> Tensor:
        """The whole, in memory of its own."""
        return torch.cat([entry.read() for entry in self.entries]).view(self.shape)


Place = Entry | Columns | Slice | Joined  # where a tensor of a model comes from


def write(
    folder: Path,
    tensors: Iterable[tuple[str, Tensor]],
    limit: int = 512 << 20,
    stem: str = "model",
    metadata: dict[str, str] | None = None,
) -> dict[str, int]:
    """Write a stream of tensors in shards of at most `limit` bytes; returns each tensor's bytes.

    Files begin with `stem`, as transformers ("model") and diffusers name them; a tensor above the
    limit has a file of its own. All of them have the metadata in their headers.
    """
    files: list[tuple[Path, list[str]]] = []
    sizes: dict[str, int] = {}
    held: dict[str, Tensor] = {}

    def flush() -> None:
        if held:
            path = folder / f"part-{len(files)}"
            _write_file(path, held, metadata or {})
            files.append((path, sorted(held)))
            held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if sum(sizes[n] for n in held) + size > limit:
            flush()
        sizes[name] = size
        held[name] = tensor.contiguous()
        del tensor
        if size >= limit:
            flush()  # before the next one is read
    flush()
    _name(folder, files, sum(sizes.values()), stem)
    return sizes


def _write_file(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _write_tensor(file, tensors[name])


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    if tensor.numel():
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _name(folder: Path, files: list[tuple[Path, list[str]]], total: int, stem: str) -> None:
    """Give the parts their final names, and an index where there are several."""
    if len(files) == 1:
        files[0][0].rename(folder / f"{stem}.safetensors")
        return
    places: dict[str, str] = {}
    for i, (path, names) in enumerate(files):
        name = f"{stem}-{i + 1:05d}-of-{len(files):05d}.safetensors"
        path.rename(folder / name)
        places |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
