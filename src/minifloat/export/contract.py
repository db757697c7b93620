"""What every on-disk contract is made of: a layer as it is stored, a scheme in the reader's words.

A contract is five pure functions. `scheme` says how the reader's configuration calls a layer's spec,
or refuses; `tensors` writes the layer; `config` gathers the schemes of a model; `schemes` and `read`
are the way back, and so also the decoder that `verify --deep` judges by. None of them imports the
reader's package, touches a file or knows a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minifloat.errors import UserError
from minifloat.export.stored import Stored
from minifloat.formats import Format
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

Scheme = dict[str, Any]
Shape = tuple[int, int]


class Refusal(UserError):
    """A contract has no words for a spec: the message is the reason, without the layer's name."""


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer [N, K] without its bias.

    Attributes:
        spec: how its weight and input are quantized.
        q: codes uint8 [N, K], one a byte, and their scales.
        input_scale: calibrated scales of an input or of its block scales, as they are stored; None
            for other inputs.
        low_rank: its branch (up [N, rank], down [rank, K]), if it has one.
    """

    spec: LayerSpec
    q: QTensor
    input_scale: Scale | None = None
    low_rank: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Contract:
    """One way of writing quantized models.

    Attributes:
        scheme: (spec, shape) -> the reader's name for it; raises `Refusal`.
        tensors: (layer, scheme) -> tensors by suffix ("weight", "weight_scale" ...).
        suffixes: scheme -> the suffixes that `tensors` writes, weights first.
        config: ({layer name: scheme}, names kept in full precision) -> `quantization_config`.
        schemes: (quantization_config, {layer name: suffixes present}) -> {layer name: scheme}.
        read: (scheme, tensors by suffix) -> the layer; the inverse of `tensors`.
        files: further files of the folder by name, from `quantization_config`.
        reciprocal: whether an outer scale is stored as 1 / scale, and so with one more rounding.
        fused: whether its readers fuse q/k/v and gate/up, which must then share a scheme.
        with_form: adds to a scheme what a convolution or a low-rank branch needs; without it, such
            layers are refused.
        hub: whether its readers take a mixture's experts one by one, as they are on the hub.
        header: (schemes, {plain tensor's name: dtype}) -> metadata of every file, for readers that look
            for schemes there; it comes back to `schemes` as the configuration's "header".
    """

    scheme: Callable[[LayerSpec, Shape], Scheme]
    tensors: Callable[[Layer, Scheme], dict[str, Tensor]]
    suffixes: Callable[[Scheme], tuple[str, ...]]
    config: Callable[[dict[str, Scheme], list[str]], dict[str, Any]]
    schemes: Callable[[dict[str, Any], dict[str, set[str]]], dict[str, Scheme]]
    read: Callable[[Scheme, dict[str, Tensor]], Layer]
    files: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}
    reciprocal: bool = False
    fused: bool = True
    with_form: Callable[[Scheme, Stored], Scheme] | None = None
    hub: bool = True
    header: Callable[[dict[str, Scheme], dict[str, torch.dtype]], dict[str, str]] | None = None


def weight_of(spec: LayerSpec) -> QuantSpec:
    """The weight's spec of a layer that a contract can be asked about.

    Raises:
        Refusal: the layer has no quantized weight, or quantizes its output.
    """
    if spec.weight is None:
        raise Refusal("the plan gives its weight no spec")
    if spec.output is not None:
        raise Refusal(f"it quantizes its output ({spec.output}), which no reader does")
    return spec.weight


def no_ragged(spec: QuantSpec, shape: Shape) -> None:
    """Refuse a smaller last group: readers derive the number of groups by division."""
    for size, tile, axis in zip(shape, spec.tile, ("rows", "columns"), strict=True):
        if tile > 0 and size % tile:
            raise Refusal(f"{size} {axis} are no multiple of its tile of {tile}")


def multiple(columns: int, of: int, why: str) -> None:
    """Refuse a width that does not fill the reader's packing unit."""
    if columns % of:
        raise Refusal(f"{columns} columns are no multiple of {of}, {why}")


def as_words(packed: Tensor) -> Tensor:
    """Bytes [N, B] as int32 words [N, ceil(B / 4)], little-endian, the last one filled with zeros."""
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4)).contiguous()
    return padded.view(torch.int32)


def as_bytes(words: Tensor, width: int) -> Tensor:
    """The first `width` bytes of every row of int32 words."""
    return words.contiguous().view(torch.uint8)[:, :width]


def flip_sign(codes: Tensor, bits: int) -> Tensor:
    """Two's complement to offset binary and back: the value plus 2^(bits - 1)."""
    return codes ^ (1 << (bits - 1))


def static_scale(layer: Layer) -> Scale:
    """The scale of a static input.

    Raises:
        Refusal: the layer has none, though its spec asks for one.
    """
    if layer.input_scale is None:
        raise Refusal("its input is static, but no scale was calibrated for it")
    return layer.input_scale


def block_scale(layer: Layer) -> Tensor:
    """The calibrated scale [1, 1] of NVFP4's block scales; 1 where the spec has none."""
    if layer.spec.calibrated is None:
        return torch.ones(1, 1)
    return static_scale(layer).stored


def is_integer(fmt: Format) -> bool:
    """Whether codes are signed integers."""
    return fmt.is_integer and fmt.signed
