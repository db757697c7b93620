"""A checkpoint folder of another contract, read by its headers and layer by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.companions import copy_companions
from minifloat.export.contract import Contract, Scheme
from minifloat.shards import DTYPES, Entry

# Tensors of at most this many bytes are read: shapes and constants, never weights.
_SMALL = 64


@dataclass(frozen=True)
class ContractFolder:
    """A folder of another contract, by its headers."""

    path: Path
    name: str
    contract: Contract
    config: dict[str, Any]
    schemes: dict[str, Scheme]
    entries: dict[str, Entry]

    def tensors(self, layer: str) -> dict[str, Tensor]:
        """A layer's tensors."""
        return {suffix: entry.read() for suffix, entry in self._of(layer).items()}

    def plain(self, name: str) -> Tensor:
        """A tensor that belongs to no quantized layer."""
        return self.entries[name].read()

    def write_companions(self, out: Path) -> None:
        """Put the tokenizer and what else lies beside the weights into another folder."""
        copy_companions(self.path, out)

    def outline(self, layer: str) -> dict[str, Tensor]:
        """A layer's tensors without their data, but for the small ones."""
        return {suffix: _outline(entry) for suffix, entry in self._of(layer).items()}

    def _of(self, layer: str) -> dict[str, Entry]:
        wanted = self.contract.suffixes(self.schemes[layer])
        found = {suffix: self.entries.get(f"{layer}.{suffix}") for suffix in wanted}
        missing = [suffix for suffix, entry in found.items() if entry is None]
        if missing:
            raise UserError(f"{layer} lacks {' and '.join(missing)}, which {self.name} asks for")
        return {suffix: entry for suffix, entry in found.items() if entry is not None}


def _outline(entry: Entry) -> Tensor:
    if entry.bytes <= _SMALL:
        return entry.read()
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
