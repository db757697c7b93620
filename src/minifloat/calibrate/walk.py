"""The walk: block after block, with a full-precision and a quantized stream of activations.

The quantized stream is what the finished, quantized blocks hand on; passes see it as a layer's
inputs, so that later layers make up for earlier errors. The full-precision stream gives targets.
Keyword arguments of blocks (masks, rotary tables) are caught once, by a run of the model in which
every block hands its input through: no block is computed, and no family needs code of its own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minifloat.calibrate.stats import Hessian, linears, output_sqnr, sqnr
from minifloat.calibrate.stream import Stream
from minifloat.errors import UserError
from minifloat.layers import QLinear
from minifloat.models.adapter import Adapter
from minifloat.qtensor import QTensor, decode
from minifloat.scales import Scale
from minifloat.spec import LayerSpec

BlockArguments = list[dict[str, Any]]


@dataclass
class Work:
    """One linear layer on its way to a packed one; passes fill the last three fields."""

    module: nn.Linear
    spec: LayerSpec
    hessian: Hessian | None = None
    scale: Scale | None = None
    q: QTensor | None = None
    low_rank: tuple[Tensor, Tensor] | None = None

    def weight(self) -> Tensor:
        """The full-precision weight [out, in] in float32."""
        return self.module.weight.detach().float()

    def quantized_weight(self) -> Tensor:
        """What the packed layer will multiply with, low-rank branch included."""
        assert self.q is not None
        w = decode(self.q)
        if self.low_rank is None:
            return w
        up, down = (part.half().float() for part in self.low_rank)
        return w + up @ down


@dataclass
class Window:
    """What a pass works on: the layers of a block, its inputs and how to run it."""

    name: str
    block: nn.Module
    layers: dict[str, Work]
    inputs: Stream
    arguments: BlockArguments
    outcome: dict[str, dict[str, Any]] = field(default_factory=dict)
    block_sqnr: float = float("nan")

    def forward(self, x: Tensor, index: int) -> Tensor:
        """The block's output for batch `index`."""
        y = self.block(x, **self.arguments[index])
        out: Tensor = y[0] if isinstance(y, tuple) else y
        return out

    def collect_hessians(self) -> None:
        """One run of the block over its quantized inputs, counting every layer's inputs."""
        handles = []
        shared: dict[int, tuple[Tensor, Hessian]] = {}
        for work in self.layers.values():
            work.hessian = None
            handles.append(work.module.register_forward_pre_hook(_counter(work, shared)))
        try:
            for index in range(len(self.inputs)):
                shared.clear()
                self.forward(self.inputs[index], index)
        finally:
            for handle in handles:
                handle.remove()


def _counter(
    work: Work, shared: dict[int, tuple[Tensor, Hessian]]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that counts a layer's inputs; layers fed by the same tensor (q, k, v) share one."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        known = shared.get(id(x))
        if known is not None and (work.hessian is None or work.hessian is known[1]):
            work.hessian = known[1]
            return
        if work.hessian is None:
            work.hessian = Hessian(x.shape[-1], x.device)
        work.hessian.add(x, work.spec.input)
        shared[id(x)] = (x, work.hessian)

    return hook


Pass = Callable[[Window], None]


@torch.no_grad()
def walk(
    model: nn.Module,
    adapter: Adapter,
    batches: Sequence[Tensor],
    specs: dict[str, LayerSpec | None],
    passes: Sequence[Pass],
    *,
    budget: int = 4 << 30,
) -> Iterator[Window]:
    """Quantize block by block, in place; yields every finished window.

    Args:
        model: the model; its planned `nn.Linear` layers become `QLinear`.
        adapter: names the blocks and runs the model.
        batches: calibration batches, such as token ids [batch, length].
        specs: what the plan says of every linear layer inside the blocks.
        passes: what is done to each window, in order.
        budget: bytes of activations to keep in memory before spilling to disk.
    """
    blocks = adapter.blocks(model)
    full, arguments = _inputs(model, adapter, blocks, batches, budget // 2)
    quantized = Stream(budget // 2)
    for index in range(len(full)):
        quantized.append(full[index])
    for name, block in blocks.items():
        layers = {}
        for full_name, module in linears(block, name).items():
            spec = specs.get(full_name)
            if spec is not None and spec.weight is not None:
                layers[full_name] = Work(module, spec)
        window = Window(name, block, layers, quantized, arguments[name])
        _check_finite(window)
        for index in range(len(full)):
            full[index] = window.forward(full[index], index)
        for apply in passes:
            apply(window)
        _replace(model, window)
        power = error = torch.zeros((), dtype=torch.float64)
        for index in range(len(full)):
            quantized[index] = window.forward(quantized[index], index)
            power = power + full[index].double().square().sum()
            error = error + (full[index] - quantized[index]).double().square().sum()
        window.block_sqnr = float(10 * torch.log10(power / error))
        yield window


def _check_finite(window: Window) -> None:
    for name, work in window.layers.items():
        bad = int((~torch.isfinite(work.module.weight)).sum())
        if bad:
            raise UserError(
                f"{name}.weight holds {bad} NaN or Inf; mend the checkpoint or keep the layer "
                "with a plan rule that maps it to null"
            )


def _replace(model: nn.Module, window: Window) -> None:
    """Put packed layers in the place of the linear ones, and write down what became of them."""
    for name, work in window.layers.items():
        assert work.q is not None, f"no pass quantized {name}"
        w, w_hat = work.weight(), work.quantized_weight()
        scales = work.q.scale.values(work.q.spec)
        window.outcome[name] = {
            "weight_sqnr": sqnr(w, w - w_hat),
            "output_sqnr": work.hessian and output_sqnr(w, w_hat, work.hessian.value),
            "samples": work.hessian and work.hessian.rows,
            "scale_min": float(scales.min()),
            "scale_max": float(scales.max()),
            "histogram": _histogram(work.q),
        }
        bias = None if work.module.bias is None else work.module.bias.detach()
        layer = QLinear.pack(work.q, work.spec, bias, work.module.weight.dtype, work.low_rank)
        model.set_submodule(name, layer)
    window.layers.clear()


def _histogram(q: QTensor) -> list[list[float]]:
    """How many weights lie on each value of the grid, both zeros as one."""
    codes = torch.bincount(q.codes.reshape(-1).int(), minlength=2**q.spec.format.bits).tolist()
    counts: dict[float, int] = {}
    for value, count in zip(q.spec.format.values, codes, strict=True):
        if not math.isnan(value):
            counts[value + 0.0] = counts.get(value + 0.0, 0) + count
    return [[value, counts[value]] for value in sorted(counts)]


def _inputs(
    model: nn.Module,
    adapter: Adapter,
    blocks: dict[str, nn.Module],
    batches: Sequence[Tensor],
    budget: int,
) -> tuple[Stream, dict[str, BlockArguments]]:
    """The first block's inputs and every block's keyword arguments, without computing a block."""
    stream = Stream(budget)
    arguments: dict[str, BlockArguments] = {name: [] for name in blocks}
    first = next(iter(blocks))
    originals = {name: block.forward for name, block in blocks.items()}
    tuples: dict[str, bool] = {}

    def recorder(name: str) -> Callable[..., Any]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if args:
                raise UserError(f"{name} takes positional arguments; the adapter must name them")
            arguments[name].append(kwargs)
            if name == first:
                stream.append(x)
            if name not in tuples:
                tuples[name] = isinstance(originals[name](x, **kwargs), tuple)
            return (x,) if tuples[name] else x

        return forward

    try:
        for name, block in blocks.items():
            block.forward = recorder(name)
        for batch in batches:
            adapter.run(model, batch)
    finally:
        for block in blocks.values():
            del block.forward
    return stream, arguments
