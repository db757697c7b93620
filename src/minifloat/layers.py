"""Layers that hold packed weights as buffers, so that they save, move and load like any module."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.kernels import native
from minifloat.kernels.interleave import in_rows, interleave, rows_of, unit_size
from minifloat.kernels.packed import PackedLinear, spec_name
from minifloat.kernels.table import KERNELS, Kernel, place
from minifloat.packing import pack, packed_width
from minifloat.qtensor import QTensor, fake_quantize
from minifloat.scales import Scale
from minifloat.spec import LayerSpec, QuantSpec

# Copies tensors behind each other along their first axis.
Join = Callable[[list[Tensor]], Tensor]
_NATIVE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class QLayer(nn.Module):
    """What packed layers share: a weight seen as a matrix [R, C], made empty and then filled.

    Buffers: `weight` uint8 [R, packed], `weight_scale` [T, U], where the spec asks for them
    `weight_outer_scale` and `weight_zero_point`, with a low-rank branch `low_rank_up` [R, rank] and
    `low_rank_down` [rank, C], with calibrated activations `input_scale` and `input_zero_point`; `bias`.
    """

    op: str
    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        features: int,
        spec: LayerSpec,
        *,
        bias: bool,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if spec.weight is None:
            raise UserError("a packed layer needs a spec for its weight")
        self.shape, self.spec, self.rank, self.dtype = shape, spec, rank, dtype
        self._held: Tensor | None = None
        self.interleaved = self.settled = False
        self._name = spec_name(spec)
        # Places of rows, which are cheaper to watch for a compiled graph than the rows.
        self._rows: dict[str, int] = {}
        self._output = spec.output
        tiles = spec.weight.tiles(shape)
        width = packed_width(shape[1], spec.weight.format.bits)
        self._empty("weight", (shape[0], width), torch.uint8)
        self._empty("weight_scale", tiles, _scale_dtype(spec.weight))
        if spec.weight.outer is not None:
            outer = spec.weight.outer
            self._empty("weight_outer_scale", outer.tiles(tiles), _scale_dtype(outer))
        if spec.weight.zero_point:
            self._empty("weight_zero_point", tiles, torch.uint8)
        if rank:
            self._empty("low_rank_up", (shape[0], rank), torch.float16)
            self._empty("low_rank_down", (rank, shape[1]), torch.float16)
        if spec.calibrated is not None:
            tiles = spec.calibrated_tiles(features)
            self._empty("input_scale", tiles, _scale_dtype(spec.calibrated))
            if spec.calibrated.zero_point:
                self._empty("input_zero_point", tiles, torch.uint8)
        self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype), False) if bias else None

    def _empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype))

    @torch.no_grad()
    def fill(
        self,
        q: QTensor,
        *,
        bias: Tensor | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
        input_scale: Scale | None = None,
    ) -> None:
        """Take over a quantized weight and what belongs to it."""
        self.interleave(False)
        values = {
            "weight": pack(q.codes, q.spec.format.bits),
            "weight_scale": q.scale.stored,
            "weight_outer_scale": q.scale.outer,
            "weight_zero_point": q.scale.zero,
            "low_rank_up": None if low_rank is None else low_rank[0],
            "low_rank_down": None if low_rank is None else low_rank[1],
            "input_scale": None if input_scale is None else input_scale.stored,
            "input_zero_point": None if input_scale is None else input_scale.zero,
        }
        for name, buffer in self._buffers.items():
            value = values[name]
            if buffer is None or value is None:
                raise UserError(f"the layer's spec asks for {name}, but no pass has found one")
            buffer.copy_(value)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    @property
    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """The branch (up [R, rank], down [rank, C]), if there is one."""
        if not self.rank:
            return None
        return self.get_buffer("low_rank_up"), self.get_buffer("low_rank_down")

    def packed(self) -> PackedLinear:
        """The layer as kernels see it; its tensors are shared, not copied."""
        own: dict[str, Any] = self._buffers  # as attributes they take longer to find
        scale = Scale(
            own["weight_scale"], own.get("weight_outer_scale"), own.get("weight_zero_point")
        )
        given = None
        if "input_scale" in own:
            given = Scale(own["input_scale"], None, own.get("input_zero_point"))
        return PackedLinear(
            own["weight"],
            scale,
            self.spec,
            self.shape,
            self.dtype,
            self.bias,
            self.low_rank,
            self._held,
            given,
            self._name,
            self.interleaved,
        )

    def kernel(self, device: str) -> Kernel:
        """The row that runs this layer on a type of device; picked at its first run there."""
        if device not in self._rows:
            self._rows[device] = place(self.op, self.spec, device)
        return KERNELS[self._rows[device]]

    def on_grid(self, y: Tensor) -> Tensor:
        """Outputs [..., R] on their grid, if they have one."""
        return y if self._output is None else fake_quantize(y, self._output)

    def decoded(self) -> Tensor:
        """The weight [R, C] that the codes stand for, without the low-rank branch."""
        return self.packed().weight()

    def hold(self, keep: bool) -> None:
        """Keep the decoded weight in memory, or let it go."""
        self._held = self.decoded() if keep else None

    def interleave(self, wanted: bool = True) -> None:
        """Put codes and scales in the order that the CPU's kernels read fastest, or back.

        In place, and only where such kernels take the layer. What is saved is always row by row.
        """
        if wanted:
            here = self.weight.device.type == "cpu"
            wanted = here and native.interleaves(self.spec, self.shape)
        if wanted == self.interleaved:
            return
        for name, unit in self._units().items():
            (interleave if wanted else in_rows)(self.get_buffer(name), unit)
        self.interleaved = wanted

    def settle(self, join: Join) -> None:
        """Move codes and scales to where `join` copies them, unless they were moved before."""
        if self.settled or not self.weight.is_cpu:
            return
        for name in ("weight", "weight_scale", "weight_zero_point"):
            if name in self._buffers:
                self._buffers[name] = join([self.get_buffer(name)])
        self.settled = True

    def _units(self) -> dict[str, int]:
        """Numbers or bytes of the units of each buffer that may be interleaved."""
        weight = self.spec.weight
        assert weight is not None
        scales = ("weight_scale", "weight_zero_point")
        by_row = [name for name in scales if weight.tile[0] == 1 and name in self._buffers]
        return {"weight": unit_size(weight.format.bits)} | dict.fromkeys(by_row, 1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, unit in self._units().items():
            if self.interleaved:
                destination[prefix + name] = rows_of(destination[prefix + name], unit)

    def _load_from_state_dict(self, *args: Any) -> None:
        before = self.interleaved
        self.interleave(False)
        super()._load_from_state_dict(*args)
        self.interleave(before)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before, stored = self.interleaved, {id(buffer) for buffer in self.buffers()}

        def keep(x: Tensor) -> Tensor:
            """Codes and scales move, but stay what they are: their dtypes are the spec's."""
            y = fn(x)
            return y if id(x) not in stored or y.dtype == x.dtype else x.to(y.device)

        self.interleave(False)
        self.settled = False
        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        self.interleave(before)
        return self

    def extra_repr(self) -> str:
        rank = f", rank={self.rank}" if self.rank else ""
        return f"{self.shape[1]}, {self.shape[0]}, {self.spec.weight}{rank}"


class Together(Protocol):
    """Layers that are multiplied as one (`siblings.py`)."""

    def output(self, layer: "QLinear", x: Tensor) -> Tensor | None:
        """What a layer makes of x, or None if it has to see for itself."""

    def part(self) -> None:
        """Let every layer multiply alone from now on."""


class QLinear(QLayer):
    """A linear layer; its weight is [out, in]."""

    op = "linear"

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
        shape = (out_features, in_features)
        super().__init__(shape, in_features, spec, bias=bias, rank=rank, dtype=dtype)
        self.in_features, self.out_features = in_features, out_features
        self.siblings: Together | None = None
        self.place = 0  # among them

    def interleave(self, wanted: bool = True) -> None:
        """As every layer's; one whose tensors change is on its own."""
        if wanted != self.interleaved and self.siblings is not None:
            self.siblings.part()
        super().interleave(wanted)

    @staticmethod
    def pack(
        q: QTensor,
        spec: LayerSpec,
        bias: Tensor | None,
        dtype: torch.dtype,
        low_rank: tuple[Tensor, Tensor] | None = None,
        input_scale: Scale | None = None,
    ) -> "QLinear":
        """The layer of a quantized weight, with an optional low-rank branch (up, down)."""
        out_features, in_features = q.shape
        rank = 0 if low_rank is None else low_rank[1].shape[0]
        layer = QLinear(
            in_features, out_features, spec, bias=bias is not None, rank=rank, dtype=dtype
        ).to(q.codes.device)
        layer.fill(q, bias=bias, low_rank=low_rank, input_scale=input_scale)
        layer.interleave()
        return layer

    def forward(self, x: Tensor) -> Tensor:
        if self.siblings is not None and self._held is None:
            part = self.siblings.output(self, x)
            if part is not None:
                return self.on_grid(part)
        y: Tensor = self.kernel(x.device.type).run(x, self.packed())
        return self.on_grid(y)


class QConv2d(QLayer):
    """A 2-D convolution; its weight [out, in / groups, height, width] is seen as [out, the rest].

    Activations [batch, channels, height, width] are seen as a matrix of pixels by channels.
    """

    op = "conv2d"

    def __init__(
        self,
        like: nn.Conv2d,
        spec: LayerSpec,
        *,
        rank: int = 0,
    ) -> None:
        shape = (like.out_channels, like.weight[0].numel())
        bias, dtype = like.bias is not None, like.weight.dtype
        super().__init__(shape, like.in_channels, spec, bias=bias, rank=rank, dtype=dtype)
        self.in_channels, self.out_channels = like.in_channels, like.out_channels
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        self.kernel_size, self.groups = like.kernel_size, like.groups
        if like.groups > 1 or isinstance(like.padding, str):  # fast rows take neither
            self.op = "any conv2d"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.kernel(x.device.type).run(x, self.packed(), self)
        return y if self._output is None else self.on_grid(y.movedim(1, -1)).movedim(-1, 1)


@contextmanager
def weights_held(model: nn.Module) -> Iterator[None]:
    """Decode every packed weight once for many forward passes: memory for time."""
    layers = [module for module in model.modules() if isinstance(module, QLayer)]
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
