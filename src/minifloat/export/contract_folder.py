"""A checkpoint folder of another contract, read by its headers and layer by layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Contract, Scheme
from minifloat.export.contracts import CONTRACTS
from minifloat.export.native_folder import read_config
from minifloat.shards import DTYPES, Entry, entries

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


def open_contract(path: Path) -> ContractFolder:
    """Read a folder's configuration and headers.

    Raises:
        UserError: it has no quantization of a contract known here.
    """
    config = read_config(path)
    quantization = config.get("quantization_config") or {}
    name = str(quantization.get("quant_method"))
    if name not in CONTRACTS:
        known = ", ".join(CONTRACTS)
        raise UserError(f"{path} has the quantization method {name!r}; known here: {known}")
    places = entries(path)
    present: dict[str, set[str]] = {}
    for tensor in places:
        module, _, suffix = tensor.rpartition(".")
        present.setdefault(module, set()).add(suffix)
    try:
        schemes = CONTRACTS[name].schemes(quantization, dict(sorted(present.items())))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path / 'config.json'} is no whole {name} configuration: {error}"
        ) from error
    if not schemes:
        raise UserError(f"{path} names no layer that is quantized by {name}")
    return ContractFolder(path, name, CONTRACTS[name], config, schemes, places)


def _outline(entry: Entry) -> Tensor:
    if entry.bytes <= _SMALL:
        return entry.read()
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
