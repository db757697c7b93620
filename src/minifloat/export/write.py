"""From our checkpoint folder to one of a contract: tensor by tensor, whole or not at all.

Peak memory is a shard and one layer, so that a model of any size goes out of a small machine. The same
folder always gives the same bytes.
"""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError, unknown
from minifloat.export.companions import copy_companions
from minifloat.export.contract import Contract, Refusal, Scheme
from minifloat.export.contracts import CONTRACTS, alternatives
from minifloat.export.experts import check_experts, under_hub_names
from minifloat.export.native import stem_of, whole_or_nothing
from minifloat.export.native_folder import NativeFolder, open_native, refuse_special
from minifloat.models.fused import fused_groups
from minifloat.scales import Scale
from minifloat.shards import DTYPES, write


def export(
    source: Path, to: str, out: Path, *, separate: bool = False, weights_only: bool = False
) -> dict[str, Any]:
    """Write a checkpoint of ours as another contract's folder.

    Args:
        source: folder of `minifloat quantize`.
        to: name of the contract.
        out: folder to write.
        separate: allow fused layers of different schemes, outer or input scales, for readers that
            do not fuse (transformers).
        weights_only: leave inputs in full precision, whatever the plan says of them.

    Returns:
        Bytes of the tensors before and after, and the number of layers by scheme.

    Raises:
        UserError: a layer that the contract cannot hold, with the reason and the contracts that can.
    """
    if to not in CONTRACTS:
        raise unknown("contract", to, (*CONTRACTS, "gguf"))
    if out.resolve() == source.resolve():
        raise UserError(f"{out} is the checkpoint itself; name another folder with --out")
    folder, contract = open_native(source), CONTRACTS[to]
    before = sum(entry.bytes for entry in folder.entries.values())
    if weights_only:
        folder = folder.weights_only()
    folder, schemes = planned(folder, to, separate=separate)
    try:
        quantization = contract.config(schemes, folder.kept())
    except Refusal as error:
        raise UserError(f"{to} cannot hold this plan: {error}") from error
    with whole_or_nothing(out) as partial:
        tensors = _tensors(folder, contract, schemes)
        header = _header(folder, contract, schemes)
        sizes = write(partial, tensors, stem=stem_of(folder.config), metadata=header)
        config = {**folder.config, "quantization_config": quantization}
        _json(partial / "config.json", config)
        for name, content in contract.files(quantization).items():
            _json(partial / name, content)
        _json(partial / "export.json", {"contract": to, "minifloat": version("minifloat")})
        copy_companions(source, partial)
    return {
        "before": before,
        "after": sum(sizes.values()),
        "layers": len(schemes),
    }


def planned(
    folder: NativeFolder, to: str, *, separate: bool = False
) -> tuple[NativeFolder, dict[str, Scheme]]:
    """The folder as a contract's readers name its layers, and every layer's scheme.

    Raises:
        UserError: the contract cannot hold a layer, or engines would refuse their combination.
    """
    contract = CONTRACTS[to]
    folder = under_hub_names(folder) if contract.hub else folder
    schemes = schemes_of(folder, to)
    if contract.fused and not separate:
        check_fused(folder, schemes)
        check_experts(folder)
    return folder, schemes


def schemes_of(folder: NativeFolder, to: str) -> dict[str, Scheme]:
    """Every packed layer's scheme in a contract.

    Raises:
        UserError: the first layer that it cannot hold.
    """
    if split := next((name for name in folder.entries if ".parts." in name), None):
        raise UserError(
            f"{to} cannot hold {split}: layers that see a concatenation, such as a U-Net's skips, are "
            "split into a sum, which only minifloat runs"
        )
    found: dict[str, Scheme] = {}
    for name, spec in folder.specs.items():
        shape, with_form = folder.shape(name), CONTRACTS[to].with_form
        refuse_special(folder, name, to, forms=with_form is not None)
        try:
            scheme = CONTRACTS[to].scheme(spec, shape)
            found[name] = with_form(scheme, folder.stored[name]) if with_form else scheme
        except Refusal as error:
            hint = alternatives(spec, shape)
            raise UserError(f"{to} cannot hold {name}: {error}; {hint}") from error
    if not found:
        raise UserError(f"{folder.path} has no packed layer to export")
    return found


def check_fused(folder: NativeFolder, schemes: dict[str, Scheme]) -> None:
    """Refuse what serving engines would: fused layers of several schemes, outer or input scales."""
    names = {*schemes, *folder.kept()}
    for whole, members in fused_groups(names).items():
        kinds = [schemes.get(name) for name in members]
        leaves = ", ".join(name.rpartition(".")[2] for name in members)
        if any(kind != kinds[0] for kind in kinds):
            raise UserError(
                f"{leaves} of {whole} have different specs, but engines compute them as one; let one "
                "rule of the plan cover them, or add --separate for transformers alone"
            )
        packed = [name for name in members if name in schemes]
        for what, scales in (
            ("outer scales", [folder.outer(name) for name in packed]),
            ("input scales", [_stored(folder.input_scale(name)) for name in packed]),
        ):
            if any(not _equal(scale, scales[0]) for scale in scales):
                raise UserError(
                    f"{leaves} of {whole} have {what} of their own, but engines compute them as "
                    "one and keep one; quantize them again with this version, which shares them, "
                    "or add --separate for transformers alone"
                )


def _stored(scale: Scale | None) -> Tensor | None:
    return None if scale is None else scale.stored


def _equal(one: Tensor | None, two: Tensor | None) -> bool:
    if one is None or two is None:
        return one is two
    return torch.equal(one, two)


def _header(folder: NativeFolder, contract: Contract, schemes: dict[str, Scheme]) -> dict[str, str]:
    if contract.header is None:
        return {}
    plain = {name: DTYPES[folder.entries[name].dtype] for name in folder.others()}
    return contract.header(schemes, plain)


def _tensors(
    folder: NativeFolder, contract: Contract, schemes: dict[str, Scheme]
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the new folder, one layer in memory at a time."""
    for name in folder.others():
        yield name, folder.entries[name].read()
    for name, scheme in schemes.items():
        for suffix, tensor in contract.tensors(folder.layer(name), scheme).items():
            yield f"{name}.{suffix}", tensor


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
