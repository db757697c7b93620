"""Our own checkpoint folder, read layer by layer without building the model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.contract import Layer, Shape
from minifloat.export.native import QUANT_METHOD
from minifloat.export.stored import Stored, stored_layers
from minifloat.models.experts import is_opened
from minifloat.packing import packed_width, unpack
from minifloat.plan import Plan
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.shards import Entry, entries
from minifloat.spec import LayerSpec, QuantSpec

_OWN = (
    *("weight", "weight_scale", "weight_outer_scale", "weight_zero_point"),
    *("input_scale", "input_zero_point", "low_rank_up", "low_rank_down"),
)
_HEADS = ("lm_head", "embed_out")  # as transformers calls them


@dataclass(frozen=True)
class NativeFolder:
    """A checkpoint of ours.

    Attributes:
        config: config.json without the quantization.
        specs: the spec of every packed layer.
        stored: what config.json says of it beside.
        entries: every tensor's place.
    """

    path: Path
    config: dict[str, Any]
    specs: dict[str, LayerSpec]
    stored: dict[str, Stored]
    entries: dict[str, Entry]

    def weights_only(self) -> "NativeFolder":
        """The same folder with its inputs in full precision."""
        specs = {name: replace(spec, input=None) for name, spec in self.specs.items()}
        return replace(self, specs=specs)

    def shape(self, name: str) -> Shape:
        """[out, in] of a packed layer; a convolution's is [out, in / groups * height * width].

        Version 1 of the folder does not say it: the widest that the bytes hold.
        """
        stored, weight = self.stored[name].shape, self.specs[name].weight
        if stored is not None:
            return stored
        assert weight is not None
        rows, width = self.entries[f"{name}.weight"].shape
        return rows, width * 8 // weight.format.bits

    def layer(self, name: str) -> Layer:
        """One packed layer, unpacked."""
        spec, shape = self.specs[name].weight, self.shape(name)
        assert spec is not None
        codes = unpack(self._read(name, "weight"), spec.format.bits, shape[1])
        scale = Scale(
            self._read(name, "weight_scale"), self.outer(name), self._zero(name, "weight")
        )
        q = QTensor(codes, scale, spec, shape)
        branch = None
        if self.stored[name].rank:
            branch = self._read(name, "low_rank_up"), self._read(name, "low_rank_down")
        return Layer(self.specs[name], q, self.input_scale(name), branch)

    def input_scale(self, name: str) -> Scale | None:
        """The calibrated scales of a layer's input."""
        if self.specs[name].calibrated is None:
            return None
        return Scale(self._read(name, "input_scale"), None, self._zero(name, "input"))

    def outer(self, name: str) -> Tensor | None:
        """The scale of a layer's scales, if it has one."""
        entry = self.entries.get(f"{name}.weight_outer_scale")
        return None if entry is None else entry.read()

    def _zero(self, name: str, of: str) -> Tensor | None:
        entry = self.entries.get(f"{name}.{of}_zero_point")
        return None if entry is None else entry.read()

    def _read(self, name: str, suffix: str) -> Tensor:
        return self.entries[f"{name}.{suffix}"].read()

    def kept(self) -> list[str]:
        """Modules with a matrix or a kernel in full precision, which a configuration must name."""
        names = [n for n, e in self.entries.items() if n.endswith(".weight") and len(e.shape) > 1]
        modules = [name.removesuffix(".weight") for name in names]
        return [name for name in modules if name not in self.specs]

    def others(self) -> Iterator[str]:
        """The tensors that are no part of a packed layer; biases are among them."""
        for name in self.entries:
            module, _, suffix = name.rpartition(".")
            if module not in self.specs or suffix not in _OWN:
                yield name


def open_native(path: Path) -> NativeFolder:
    """Read the headers of a checkpoint of ours.

    Raises:
        UserError: it is none, or lacks tensors that its configuration names.
    """
    config = read_config(path)
    quantization = config.pop("quantization_config", None) or {}
    if not isinstance(quantization, dict):
        raise UserError(f"the quantization_config in {path} is no object")
    if quantization.get("quant_method") != QUANT_METHOD:
        found = quantization.get("quant_method", "no quantization")
        raise UserError(
            f"{path} is no minifloat checkpoint (its config.json has {found}); "
            "write one with 'minifloat quantize' or 'minifloat import'"
        )
    stored = stored_layers(quantization)
    plan = Plan.from_json({"rules": quantization.get("rules", [])})
    known, found_specs = entries(path), {}
    for name in sorted(stored):  # an order that survives export and import
        spec = plan.spec_of(name)
        if spec is None or spec.weight is None or f"{name}.weight" not in known:
            raise UserError(f"{path} names a packed layer {name!r} that it does not hold")
        _check_bytes(name, stored[name].shape, spec.weight, known[f"{name}.weight"])
        _check_scales(path, name, spec, stored[name].shape, known)
        found_specs[name] = spec
    return NativeFolder(path, config, found_specs, stored, known)


def _check_bytes(name: str, shape: Shape | None, spec: QuantSpec, entry: Entry) -> None:
    """Refuse codes that are not those of the shape that config.json says."""
    if shape is None:
        return
    wanted = (shape[0], packed_width(shape[1], spec.format.bits))
    if entry.shape != wanted:
        raise UserError(
            f"config.json says that {name} is {list(shape)}, whose codes take {list(wanted)} bytes, "
            f"but they are {list(entry.shape)}; copy the checkpoint again"
        )


def _check_scales(
    path: Path, name: str, spec: LayerSpec, shape: Shape | None, known: dict[str, Entry]
) -> None:
    """Refuse a layer that lacks a tensor its spec asks for, or has another number of scales."""
    weight, x = spec.weight, spec.calibrated
    assert weight is not None
    wanted = ["weight_scale"]
    wanted += ["weight_outer_scale"] if weight.outer is not None else []
    wanted += ["weight_zero_point"] if weight.zero_point else []
    wanted += ["input_scale"] if x is not None else []
    wanted += ["input_zero_point"] if x is not None and x.zero_point else []
    for suffix in wanted:
        if f"{name}.{suffix}" not in known:
            raise UserError(f"{path} lacks {name}.{suffix}, which its plan asks for")
    if shape is None:
        return
    scale = known[f"{name}.weight_scale"].shape
    if scale != weight.tiles(shape):
        raise UserError(f"{name}.weight_scale in {path} is {list(scale)}, which its spec is not")


def refuse_special(
    folder: NativeFolder, name: str, to: str, *, forms: bool = False, outside: bool = False
) -> None:
    """Refuse what readers have no place for, whatever its spec.

    Args:
        forms: whether the contract takes convolutions and low-rank branches.
        outside: whether it takes embeddings and output heads.
    """
    stored = folder.stored[name]
    if not outside and (stored.embedding or name.rpartition(".")[2] in _HEADS):
        raise UserError(
            f"{to} cannot hold {name}: its readers keep embeddings and the output head in full "
            "precision; quantize with --set head=none, or export to gguf"
        )
    if is_opened(name):
        raise UserError(
            f"{to} cannot hold {name}: its readers take experts in one parameter alone; "
            "compressed-tensors and others have them one by one"
        )
    if stored.kernel is not None and not forms:
        raise UserError(
            f"{to} cannot hold {name}: it is {stored}, and readers take quantized linear layers alone; "
            "give convolutions null in the plan, or export to sdnq"
        )
    if stored.rank and not forms:
        raise UserError(
            f"{to} cannot hold {name}: it has a low-rank branch of rank {stored.rank}, "
            "which only minifloat and sdnq run; quantize with --set rank=0, or export to sdnq"
        )


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    try:
        config = json.loads((path / "config.json").read_text())
    except FileNotFoundError:
        raise UserError(
            f"{str(path)!r} has no config.json, so it is not a model's folder"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path / 'config.json'} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.json'} holds no configuration")
    return config
