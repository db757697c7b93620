"""From another contract's folder to one of ours: packed layers stay packed, codes are not touched.

The result loads as any checkpoint of ours, runs on our kernels and goes out again by any contract that
can hold it. A folder that we exported comes back to the same export byte for byte.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Refusal
from minifloat.export.contract_folder import ContractFolder
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
        UserError: something that our layers cannot hold, such as a calibrated scale of NVFP4 inputs.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"{out} is the checkpoint itself; name another folder with --out")
    folder = open_contract(source)
    if weights_only:
        folder = _without_inputs(folder)
    if folder.config["quantization_config"].get("kv_cache_scheme"):
        raise UserError(f"{source} quantizes its KV cache, which minifloat does not run")
    if expert := next((name for name in folder.schemes if ".experts." in name), None):
        raise UserError(f"{expert} is one of a mixture's experts, which are not imported yet")
    specs, stored = {}, {}
    for name in folder.schemes:
        specs[name], stored[name] = _outline(folder, name, weights_only)
    quantization = configuration(_plan(specs), stored)
    table = next((name for name, about in stored.items() if about.embedding), None)
    if table is not None and folder.config.get("tie_word_embeddings"):
        quantization["tied"] = {"lm_head": table}
    config = {**folder.config, "quantization_config": quantization}
    with whole_or_nothing(out) as partial:
        write(partial, _tensors(folder, specs), stem=stem_of(config))
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        note = {"imported": folder.name, "minifloat": version("minifloat")}
        (partial / "export.json").write_text(json.dumps(note, indent=2) + "\n")
        folder.write_companions(partial)
    return len(specs)


def _without_inputs(folder: ContractFolder) -> ContractFolder:
    """The same folder with compressed-tensors' inputs forgotten, which may be of kinds unknown here."""
    forgotten = {
        name: {**scheme, "input_activations": None} if "input_activations" in scheme else scheme
        for name, scheme in folder.schemes.items()
    }
    return replace(folder, schemes=forgotten)


def _outline(folder: ContractFolder, name: str, weights_only: bool) -> tuple[LayerSpec, Stored]:
    """A layer's spec and shape, if our layers can hold what is stored."""
    if f"{name}.weight_g_idx" in folder.entries:
        raise UserError(f"{name} sorts its columns (weight_g_idx), which minifloat does not read")
    try:
        layer = folder.contract.read(folder.schemes[name], folder.outline(name))
    except Refusal as error:
        raise UserError(
            f"minifloat has no layer like {name}: {error}; if it is the input, add --weights-only"
        ) from error
    rank = 0 if layer.low_rank is None else layer.low_rank[1].shape[0]
    kernel = folder.schemes[name].get("shape", [])[2:]  # SDNQ's convolutions
    shape = layer.q.shape[0], layer.q.shape[1]
    form = (kernel[0], kernel[1]) if kernel else None
    spec, stored = layer.spec, Stored(rank, shape, form, name.endswith("embed_tokens"))
    if weights_only:
        return LayerSpec(spec.weight), stored
    if not spec.static_input and not _constants_are_one(folder, name):
        raise UserError(
            f"{name} has a calibrated scale over an input that is scaled at run time, for which our "
            "layers have no place; add --weights-only to leave inputs in full precision"
        )
    return spec, stored


def _constants_are_one(folder: ContractFolder, name: str) -> bool:
    """Whether stored scales of dynamic inputs say what a spec without them says."""
    for suffix in ("input_scale", "input_global_scale"):
        entry = folder.entries.get(f"{name}.{suffix}")
        if entry is not None and not bool((entry.read().float() == 1).all()):
            return False
    return True


def _plan(specs: dict[str, LayerSpec]) -> Plan:
    rules = list(specs.items())
    if len(set(specs.values())) == 1:
        rules = [("*", rules[0][1])]
    return Plan(tuple(rules))


def _tensors(folder: ContractFolder, specs: dict[str, LayerSpec]) -> Iterator[tuple[str, Tensor]]:
    for name in folder.entries:
        module, _, suffix = name.rpartition(".")
        if module not in specs or suffix == "bias":
            yield name, folder.plain(name)
    for name, spec in specs.items():
        layer: Layer = folder.contract.read(folder.schemes[name], folder.tensors(name))
        given = layer.input_scale if spec.static_input else None
        packed = QLinear.pack(
            layer.q, spec, None, torch.float32, low_rank=layer.low_rank, input_scale=given
        )
        for suffix, tensor in packed.state_dict().items():
            yield f"{name}.{suffix}", tensor
