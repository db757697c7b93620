"""Statistics of a layer's inputs as plain functions and one accumulator."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from minifloat.models.irreplaceable import why_irreplaceable
from minifloat.qtensor import fake_quantize
from minifloat.spec import QuantSpec

Layer = nn.Linear | nn.Conv2d

# Pixels of one call that a convolution's Hessian counts: neighbours look alike, and their patches
# are as many times larger than the image as the kernel has taps.
_PIXELS = 1 << 14


# Output channels whose error stands for a layer's: the products cost as much as GPTQ does.
_CHANNELS = 512

# Columns below which one product is faster than several.
_LEAF = 400


class Hessian:
    """Running H = X^T X / N over input rows X [N, in]: the second moment that GPTQ works with."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, dtype=torch.float32, device=device)
        self.rows = 0
        self._is_whole = False

    def add(self, rows: Tensor) -> None:
        """Count rows [N, in]."""
        assert not self._is_whole, "the moment was asked for already"
        _add_lower(self.total, rows.float())
        self.rows += rows.shape[0]

    @staticmethod
    def blind(features: int, device: torch.device, rows: int = 0) -> "Hessian":
        """All inputs alike, for a layer that saw only `rows`: errors count as errors of weights."""
        hessian = Hessian(features, device)
        hessian.total.diagonal().fill_(max(1, rows))
        hessian.rows = rows
        return hessian

    @property
    def value(self) -> Tensor:
        """[in, in], divided by the rows seen. Ends the counting: a wide one has no room for a copy."""
        if not self._is_whole:
            _mirror(self.total)
            self.total.div_(max(1, self.rows))
            self._is_whole = True
        return self.total


def _mirror(total: Tensor) -> None:
    """Copy the lower triangle to the upper one, in place."""
    size = total.shape[0]
    if size <= _LEAF:
        total.copy_(total.tril() + total.tril(-1).T)
        return
    half = size // 2
    total[:half, half:] = total[half:, :half].T
    _mirror(total[:half, :half])
    _mirror(total[half:, half:])


def _add_lower(total: Tensor, rows: Tensor) -> None:
    """Add X^T X to the lower triangle by halves: up to 1.5 times faster than the whole product.

    Blocks on the diagonal are computed whole, so something lies above it too.
    """
    size = total.shape[0]
    if size <= _LEAF:
        total.addmm_(rows.T, rows)
        return
    half = size // 2
    _add_lower(total[:half, :half], rows[:, :half])
    _add_lower(total[half:, half:], rows[:, half:])
    total[half:, :half].addmm_(rows[:, half:].T, rows[:, :half])


def input_rows(layer: Layer, x: Tensor, spec: QuantSpec | None = None) -> Tensor:
    """What a layer multiplies its weight matrix [out, in] with: rows [N, in], quantized by `spec`.

    Of a convolution's input [batch, channels, height, width] these are the patches under its kernel,
    evenly spaced ones if there are very many.
    """
    x = x.detach()
    if isinstance(layer, nn.Linear):
        return (x if spec is None else fake_quantize(x, spec)).reshape(-1, x.shape[-1])
    if spec is not None:
        x = fake_quantize(x.movedim(1, -1), spec).movedim(-1, 1)
    patches = nn.functional.unfold(
        padded(layer, x.float()), layer.kernel_size, layer.dilation, 0, layer.stride
    )
    rows = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return rows[:: stride_for(len(rows), _PIXELS)]


def stride_for(count: int, wanted: int) -> int:
    """A step through `count` pixels that leaves about `wanted`; odd, so that it meets all columns."""
    return -(-count // max(1, wanted)) | 1


def padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution's input with its padding in place."""
    return nn.functional.pad(x, layer._reversed_padding_repeated_twice)


def sqnr(signal: Tensor, noise: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite without noise."""
    return float(10 * torch.log10(_power(signal) / _power(noise)))


def _power(x: Tensor) -> Tensor:
    """Sum of squares in float64, in pieces: a copy of a large weight would be its largest cost."""
    parts = torch.split(x.reshape(-1), 1 << 18)
    return torch.stack([part.double().square().sum() for part in parts]).sum()


def output_sqnr(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    """SQNR in dB of the layer's output for weights [out, in], from tr(W H W^T) without a forward.

    Of a large layer, evenly spaced output channels are looked at.
    """
    some = some_channels(w.shape[0])
    power, error = (quadratic(x, hessian) for x in (w[some], w[some] - w_hat[some]))
    return float(10 * torch.log10(power / error))


def some_channels(count: int) -> slice:
    """Evenly spaced output channels, all of them up to 512."""
    return slice(None, None, stride_for(count, _CHANNELS))


def quadratic(w: Tensor, hessian: Tensor) -> Tensor:
    """tr(W H W^T) of a matrix [out, in]."""
    return ((w @ hessian) * w).double().sum()


def quantizable(block: nn.Module, prefix: str) -> dict[str, Layer]:
    """The linear layers and 2-D convolutions of a block by full name; the block may be one itself."""
    return {
        f"{prefix}.{name}" if name else prefix: module
        for name, module in block.named_modules()
        if _is_quantizable(module) and not why_irreplaceable(name, module)
    }


def _is_quantizable(module: nn.Module) -> TypeGuard[Layer]:
    if isinstance(module, nn.Conv2d):
        return module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)
