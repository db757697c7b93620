"""Layers that hold packed weights as buffers, so that they save, move and load like any module."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.kernels.packed import PackedLinear
from minifloat.kernels.table import pick
from minifloat.packing import pack, packed_width
from minifloat.qtensor import QTensor
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

_NATIVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class QLinear(nn.Module):
    """A linear layer [out, in] with a packed weight, made empty and then filled.

    Buffers: `weight` uint8 [out, packed], `weight_scale` [T, U], where the spec asks for them
    `weight_outer_scale` and `weight_zero_point`, with a low-rank branch `low_rank_up` [out, rank] and
    `low_rank_down` [rank, in], and `bias`.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        spec: LayerSpec,
        *,
        bias: bool,
        rank: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if spec.weight is None:
            raise UserError("a packed linear layer needs a spec for its weight")
        self.in_features, self.out_features = in_features, out_features
        self.spec, self.rank = spec, rank
        self.dtype = dtype
        self._held: Tensor | None = None
        weight_spec = spec.weight
        tiles = weight_spec.tiles((out_features, in_features))
        width = packed_width(in_features, weight_spec.format.bits)
        self._empty("weight", (out_features, width), torch.uint8)
        self._empty("weight_scale", tiles, _scale_dtype(weight_spec))
        if weight_spec.outer is not None:
            outer = weight_spec.outer
            self._empty("weight_outer_scale", outer.tiles(tiles), _scale_dtype(outer))
        if weight_spec.zero_point:
            self._empty("weight_zero_point", tiles, torch.uint8)
        if rank:
            self._empty("low_rank_up", (out_features, rank), torch.float16)
            self._empty("low_rank_down", (rank, in_features), torch.float16)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype), False) if bias else None

    def _empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype))

    @staticmethod
    def pack(
        q: QTensor,
        spec: LayerSpec,
        bias: Tensor | None,
        dtype: torch.dtype,
        low_rank: tuple[Tensor, Tensor] | None = None,
    ) -> "QLinear":
        """The layer of a quantized weight, with an optional low-rank branch (up, down)."""
        out_features, in_features = q.shape
        rank = 0 if low_rank is None else low_rank[1].shape[0]
        layer = QLinear(
            in_features, out_features, spec, bias=bias is not None, rank=rank, dtype=dtype
        ).to(q.codes.device)
        layer.weight.copy_(pack(q.codes, q.spec.format.bits))
        layer.weight_scale.copy_(q.scale.stored)
        if q.scale.outer is not None:
            layer.get_buffer("weight_outer_scale").copy_(q.scale.outer)
        if q.scale.zero is not None:
            layer.get_buffer("weight_zero_point").copy_(q.scale.zero)
        if low_rank is not None:
            layer.get_buffer("low_rank_up").copy_(low_rank[0])
            layer.get_buffer("low_rank_down").copy_(low_rank[1])
        if bias is not None and layer.bias is not None:
            layer.bias.data.copy_(bias)
        return layer

    def _optional(self, name: str) -> Tensor | None:
        return self._buffers.get(name)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """The branch (up [out, rank], down [rank, in]), if there is one."""
        if not self.rank:
            return None
        return self.get_buffer("low_rank_up"), self.get_buffer("low_rank_down")

    def packed(self) -> PackedLinear:
        """The layer as kernels see it; its tensors are shared, not copied."""
        scale = Scale(
            self.weight_scale,
            self._optional("weight_outer_scale"),
            self._optional("weight_zero_point"),
        )
        shape = (self.out_features, self.in_features)
        return PackedLinear(
            self.weight, scale, self.spec, shape, self.dtype, self.bias, self.low_rank, self._held
        )

    def decoded(self) -> Tensor:
        """The weight [out, in] that the codes stand for, without the low-rank branch."""
        return self.packed().weight()

    def hold(self, keep: bool) -> None:
        """Keep the decoded weight in memory, or let it go."""
        self._held = self.decoded() if keep else None

    def forward(self, x: Tensor) -> Tensor:
        kernel = pick("linear", self.spec, x.device.type)
        y: Tensor = kernel.run(x, self.packed())
        return y

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.rank else ""
        return f"{self.in_features}, {self.out_features}, {self.spec.weight}{rank}"


@contextmanager
def weights_held(model: nn.Module) -> Iterator[None]:
    """Decode every packed weight once for many forward passes: memory for time."""
    layers = [module for module in model.modules() if isinstance(module, QLinear)]
    for layer in layers:
        layer.hold(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.hold(False)


def _scale_dtype(spec: QuantSpec) -> torch.dtype:
    fmt = spec.scale_format
    return _NATIVE_DTYPES[fmt.name] if fmt.is_native else torch.uint8
