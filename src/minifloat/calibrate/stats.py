"""Statistics of a layer's inputs as plain functions and one accumulator."""

import torch
from torch import Tensor, nn

from minifloat.qtensor import fake_quantize
from minifloat.spec import QuantSpec


class Hessian:
    """Running H = X^T X / N over input rows X [N, in]: the second moment that GPTQ works with."""

    def __init__(self, features: int, device: torch.device) -> None:
        self.total = torch.zeros(features, features, device=device)
        self.rows = 0

    def add(self, x: Tensor, spec: QuantSpec | None) -> None:
        """Count the inputs x [..., in] as the layer will see them, quantized."""
        x = x.detach()
        rows = (x if spec is None else fake_quantize(x, spec)).reshape(-1, x.shape[-1]).float()
        self.total.addmm_(rows.T, rows)
        self.rows += rows.shape[0]

    @property
    def value(self) -> Tensor:
        """[in, in], divided by the rows seen."""
        return self.total / max(1, self.rows)


def sqnr(signal: Tensor, noise: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB; infinite without noise."""
    power, error = signal.double().square().sum(), noise.double().square().sum()
    return float(10 * torch.log10(power / error))


def output_sqnr(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    """SQNR in dB of the layer's output for weights [out, in], from tr(W H W^T) without a forward."""
    power = ((w @ hessian) * w).double().sum()
    difference = w - w_hat
    error = ((difference @ hessian) * difference).double().sum()
    return float(10 * torch.log10(power / error))


def linears(block: nn.Module, prefix: str) -> dict[str, nn.Linear]:
    """The linear layers of a block by full name."""
    return {
        f"{prefix}.{name}": module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
