"""From another contract's folder to one of ours: packed layers stay packed, codes are not touched.

The result loads as any checkpoint of ours, runs on our kernels and goes out again by any contract that
can hold it. A folder that we exported comes back to the same export byte for byte.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Refusal, Scheme
from minifloat.export.contract_folder import ContractFolder
from minifloat.export.join_experts import Names, Parts, joined, names_of
from minifloat.export.native import configuration, stem_of, whole_or_nothing
from minifloat.export.open_contract import open_contract
from minifloat.export.stored import Stored
from minifloat.layers import QLinear
from minifloat.plan import Plan
from minifloat.shards import write
from minifloat.spec import LayerSpec


def read_folder(source: Path, out: Path, *, weights_only: bool = False) -> int:
    """Write a folder of another contract as a checkpoint of ours; returns the number of layers.

    Args:
        source: folder that vLLM or transformers would load.
        out: folder to write.
        weights_only: leave inputs in full precision, whatever the folder says of them.

    Raises:
        UserError: something that our layers cannot hold, such as inputs scaled by channel.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"{out} is the checkpoint itself; name another folder with --out")
    folder = open_contract(source)
    if weights_only:
        folder = _without_inputs(folder)
    if folder.config["quantization_config"].get("kv_cache_scheme"):
        raise UserError(f"{source} quantizes its KV cache, which minifloat does not run")
    names = names_of(folder)
    specs, stored = {}, {}
    packed = names.together(folder.schemes)
    for name, parts in packed.items():
        specs[name], stored[name] = _outline(folder, name, parts, weights_only)
    quantization = configuration(_plan(specs), stored)
    quantization |= {"experts": sorted(names.opened)} if names.opened else {}
    table = next((name for name, about in stored.items() if about.embedding), None)
    if table is not None and folder.config.get("tie_word_embeddings"):
        quantization["tied"] = {"lm_head": table}
    config = {**folder.config, "quantization_config": quantization}
    with whole_or_nothing(out) as partial:
        tensors = chain(_plain(folder, names), _tensors(folder, packed, specs))
        write(partial, tensors, stem=stem_of(config))
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        note = {"imported": folder.name, "minifloat": version("minifloat")}
        (partial / "export.json").write_text(json.dumps(note, indent=2) + "\n")
        folder.write_companions(partial)
    return len(specs)


def _without_inputs(folder: ContractFolder) -> ContractFolder:
    """The same folder with its inputs forgotten, which may be of kinds unknown here."""
    return replace(folder, schemes={n: _forgotten(s) for n, s in folder.schemes.items()})


def _forgotten(scheme: Scheme) -> Scheme:
    """A scheme of compressed-tensors or torchao without its input; those of others are known."""
    if "input_activations" in scheme:
        return {**scheme, "input_activations": None}
    if "_data" in scheme:
        data = {**scheme["_data"], "act_quant_kwargs": None, "activation_quantization": None}
        return {**scheme, "_data": data}
    return scheme


def _outline(
    folder: ContractFolder, name: str, parts: tuple[str, ...], weights_only: bool
) -> tuple[LayerSpec, Stored]:
    """A layer's spec and shape, if our layers can hold what is stored."""
    for part in parts:
        if f"{part}.weight_g_idx" in folder.entries:
            raise UserError(
                f"{part} sorts its columns (weight_g_idx), which minifloat does not read"
            )
    try:
        layer = _joined(folder, name, parts, folder.outline)
    except Refusal as error:
        raise UserError(
            f"minifloat has no layer like {name}: {error}; if it is the input, add --weights-only"
        ) from error
    rank = 0 if layer.low_rank is None else layer.low_rank[1].shape[0]
    kernel = folder.schemes[parts[0]].get("shape", [])[2:]  # SDNQ's convolutions
    shape = layer.q.shape[0], layer.q.shape[1]
    form = (kernel[0], kernel[1]) if kernel else None
    spec, stored = layer.spec, Stored(rank, shape, form, name.endswith("embed_tokens"))
    if weights_only:
        return LayerSpec(spec.weight), stored
    return spec, stored


def _plan(specs: dict[str, LayerSpec]) -> Plan:
    rules = list(specs.items())
    if len(set(specs.values())) == 1:
        rules = [("*", rules[0][1])]
    return Plan(tuple(rules))


def _joined(
    folder: ContractFolder,
    name: str,
    parts: tuple[str, ...],
    read: Callable[[str], dict[str, Tensor]],
) -> Layer:
    """Our layer of one or more of the folder's, read whole or by their outlines."""
    layers = [folder.contract.read(folder.schemes[part], read(part)) for part in parts]
    return joined(name, layers)


def _tensors(
    folder: ContractFolder, packed: Parts, specs: dict[str, LayerSpec]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of our packed layers, one layer in memory at a time."""
    for name, spec in specs.items():
        layer = _joined(folder, name, packed[name], folder.tensors)
        given = None if spec.input is None else layer.input_scale
        module = QLinear.pack(
            layer.q, spec, None, torch.float32, low_rank=layer.low_rank, input_scale=given
        )
        for suffix, tensor in module.state_dict().items():
            yield f"{name}.{suffix}", tensor


def _plain(folder: ContractFolder, names: Names) -> Iterator[tuple[str, Tensor]]:
    """All other tensors, by our names; gate and up in full precision become one as well."""
    found: dict[str, list[str]] = {}
    for name in folder.entries:
        module, _, suffix = name.rpartition(".")
        if module not in folder.schemes or suffix == "bias":
            found.setdefault(suffix, []).append(module)
    for suffix, modules in found.items():
        for name, parts in names.together(modules).items():
            tensors = [folder.plain(f"{part}.{suffix}".removeprefix(".")) for part in parts]
            yield f"{name}.{suffix}".removeprefix("."), _whole(tensors)


def _whole(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
