"""Layers to test kernels with."""

import torch
from torch import Tensor

from minifloat.kernels.interleave import interleave, unit_size
from minifloat.kernels.packed import PackedLinear
from minifloat.packing import pack
from minifloat.qtensor import encode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec


def problem(
    spec: LayerSpec, tokens: int, columns: int, rows: int, rank: int = 0
) -> tuple[Tensor, PackedLinear]:
    """Activations [1, tokens, columns] and a layer for them, with a bias and perhaps a branch."""
    generator = torch.Generator().manual_seed(columns)
    assert spec.weight is not None
    q = encode(torch.randn(rows, columns, generator=generator), spec.weight)
    branch = None
    if rank:
        branch = (torch.randn(rows, rank).half(), torch.randn(rank, columns).half())
    bias = torch.randn(rows, generator=generator)
    codes = pack(q.codes, spec.weight.format.bits)
    shape = (rows, columns)
    layer = PackedLinear(codes, q.scale, spec, shape, torch.float32, bias, branch)
    return torch.randn(1, tokens, columns, generator=generator), layer


def side_by_side(layer: PackedLinear) -> PackedLinear:
    """The same layer with its rows interleaved."""
    spec, (stored, outer, zero) = layer.spec.weight, layer.scale
    assert spec is not None
    codes, stored, zero = (
        layer.codes.clone(),
        stored.clone(),
        None if zero is None else zero.clone(),
    )
    interleave(codes, unit_size(spec.format.bits))
    for part in (stored, zero) if spec.tile[0] == 1 else ():
        if part is not None:
            interleave(part, 1)
    return layer._replace(codes=codes, scale=Scale(stored, outer, zero), interleaved=True)


def assert_close(y: Tensor, expected: Tensor, within: float = 2e-6) -> None:
    """Equal but for the order of fp32 sums."""
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    error = (y.double() - expected.double()).norm() / expected.double().norm()
    assert float(error) < within
