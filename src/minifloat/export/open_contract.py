"""Opens what another program would load: a folder of a contract, or a GGUF file."""

from pathlib import Path

from minifloat.errors import UserError
from minifloat.export.contract_folder import ContractFolder
from minifloat.export.contracts import CONTRACTS
from minifloat.export.gguf.folder import open_gguf
from minifloat.export.gguf.write import FILE
from minifloat.export.native_folder import read_config
from minifloat.shards import entries, metadata_of


def open_contract(path: Path) -> ContractFolder:
    """Read a folder's configuration and headers, or a GGUF file's.

    Raises:
        UserError: it has no quantization of a contract known here.
    """
    if path.suffix.lower() == ".gguf":
        return open_gguf(path)
    if (path / FILE).is_file() and not (path / "config.json").is_file():
        return open_gguf(path / FILE)
    config = read_config(path)
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise UserError(f"the quantization_config in {path} is no object")
    name = str(quantization.get("quant_method"))
    if name not in CONTRACTS:
        known = ", ".join(CONTRACTS)
        raise UserError(f"{path} has the quantization method {name!r}; known here: {known}")
    if CONTRACTS[name].header is not None:
        quantization = {**quantization, "header": metadata_of(path)}
    places = entries(path)
    present: dict[str, set[str]] = {}
    for tensor in places:
        module, _, suffix = tensor.rpartition(".")
        present.setdefault(module, set()).add(suffix)
    try:
        schemes = CONTRACTS[name].schemes(quantization, dict(sorted(present.items())))
        for scheme in schemes.values():
            CONTRACTS[name].suffixes(scheme)  # asks for every field that is needed
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path / 'config.json'} is no whole {name} configuration: {error}"
        ) from error
    if not schemes:
        raise UserError(f"{path} names no layer that is quantized by {name}")
    return ContractFolder(path, name, CONTRACTS[name], config, schemes, places)
