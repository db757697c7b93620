"""What a kernel gets to see of a layer: packed codes, scales, bias and the low-rank branch."""

import json
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minifloat.kernels.interleave import some_rows, unit_size, weight_in_rows
from minifloat.packing import unpack
from minifloat.qtensor import QTensor, decode, fake_quantize
from minifloat.scales import Scale
from minifloat.spec import CacheSpec, LayerSpec, QuantSpec


class PackedLinear(NamedTuple):
    """A layer's weight as a matrix [out, in], as it is stored. Made anew in every call, so a tuple.

    Attributes:
        codes: uint8 [out, packed width].
        scale: stored scales of the weight's tiles.
        spec: how weight and input are quantized; a layer rounds its output itself.
        shape: (out, in).
        dtype: of the decoded weight.
        bias: [out] or None.
        low_rank: the branch (up [out, rank], down [rank, in]) or None.
        held: the decoded weight, where it is kept in memory.
        input_scale: of calibrated activations, or of their scales.
        name: the spec as JSON, if it is known.
        interleaved: codes and scales are in the order of `interleave.py`.
    """

    codes: Tensor
    scale: Scale
    spec: LayerSpec
    shape: tuple[int, int]
    dtype: torch.dtype
    bias: Tensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None
    held: Tensor | None = None
    input_scale: Scale | None = None
    name: str = ""
    interleaved: bool = False

    def operands(self) -> tuple[Tensor | str | bool | None, ...]:
        """What the ops take after x: stored tensors and the spec's name."""
        scale, given = self.scale, self.input_scale
        stored, zero = (None, None) if given is None else (given.stored, given.zero)
        name = self.name or spec_name(self.spec)
        weight = self.codes, scale.stored, scale.outer, scale.zero, self.bias, self.interleaved
        return *weight, stored, zero, name

    def in_rows(self) -> "PackedLinear":
        """The same with codes and scales row by row; copies, if they were interleaved."""
        if not self.interleaved:
            return self
        assert self.spec.weight is not None
        codes, scale = weight_in_rows(self.codes, self.scale, self.spec.weight)
        return self._replace(codes=codes, scale=scale, interleaved=False)

    def weight(self) -> Tensor:
        """The decoded weight [out, in], without the low-rank branch."""
        if self.held is not None:
            return self.held
        spec = self.spec.weight
        assert spec is not None
        plain = self.in_rows()
        codes = unpack(plain.codes, spec.format.bits, self.shape[1])
        return decode(QTensor(codes, plain.scale, spec, self.shape), self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows [N, in] of the decoded weight; only these are unpacked."""
        spec = self.spec.weight
        assert spec is not None
        mixed, bits = self.interleaved, spec.format.bits
        stored = some_rows(self.codes, ids, unit_size(bits)) if mixed else self.codes[ids]
        codes = unpack(stored, bits, self.shape[1])
        scale, spec = _of_rows(self.scale, spec, ids, mixed and spec.tile[0] == 1)
        return decode(QTensor(codes, scale, spec, tuple(codes.shape)), self.dtype)

    def weight_and_branch(self) -> Tensor:
        """The decoded weight [out, in] with the low-rank branch added."""
        w = self.weight()
        if self.low_rank is None:
            return w
        up, down = self.low_rank
        return w + (up.float() @ down.float()).to(w.dtype)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Activations [..., in] on their grid, if they have one."""
        if self.spec.input is None:
            return x
        return fake_quantize(x, self.spec.input, self.input_scale)


def _of_rows(
    scale: Scale, spec: QuantSpec, rows: Tensor, interleaved: bool
) -> tuple[Scale, QuantSpec]:
    """The scales of single rows, and the spec of the matrix that these rows make."""
    tiles, outer = _tile_of(rows, spec), scale.outer
    inner: QuantSpec | None = spec.outer
    if inner is not None and outer is not None:
        outer = outer[_tile_of(tiles, inner)]
        spec = replace(spec, scale=replace(inner, tile=(1, inner.tile[1])))
    stored, zero = (
        part if part is None else some_rows(part, tiles, 1) if interleaved else part[tiles]
        for part in (scale.stored, scale.zero)
    )
    assert stored is not None
    return Scale(stored, outer, zero), replace(spec, tile=(1, spec.tile[1]))


def _tile_of(rows: Tensor, spec: QuantSpec) -> Tensor:
    """Which tile each row of a matrix lies in."""
    size = spec.tile[0]
    return torch.zeros_like(rows) if size == -1 else rows // size


def spec_name(spec: LayerSpec | CacheSpec | QuantSpec) -> str:
    """A spec in one line: what the ops are told."""
    return json.dumps(spec.to_json())
