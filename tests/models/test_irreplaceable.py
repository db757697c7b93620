"""Layers that look like linear layers and must not be replaced by packed ones."""

import torch
from torch import Tensor, nn

from minifloat.calibrate.stats import quantizable
from minifloat.models.kept import why_kept


class Router(nn.Linear):
    """A linear layer with more behind it, as Llama 4 has one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


class Renamed(nn.Linear):
    """A linear layer of another name."""


class Spelled(nn.Linear):
    """A linear layer that writes its product out, as Falcon's do."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Standardized(nn.Conv2d):
    """A convolution that is no product with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.router, self.plain, self.spelled = Router(8, 4), Renamed(8, 4), Spelled(8, 4)
        self.conv, self.other = nn.Conv2d(2, 2, 3), Standardized(2, 2, 3, dilation=2)


def test_only_layers_that_are_called_as_linear_maps_are_packed() -> None:
    assert list(quantizable(Block(), "block")) == ["block.plain", "block.spelled", "block.conv"]


def test_a_packed_output_layer_would_break_torch_s_attention() -> None:
    """The reason for the rule: the weight is read, whatever sits in the layer's place."""
    attention, x = nn.MultiheadAttention(8, 2), torch.randn(3, 1, 8)
    before = attention(x, x, x)[0]
    attention.out_proj.register_forward_pre_hook(lambda *_: 1 / 0)  # never called
    assert torch.equal(attention(x, x, x)[0], before)


def test_the_ledger_says_why() -> None:
    block = Block()
    out = why_kept("block.attention.out_proj.weight", block.attention.out_proj, False)
    assert "never calls" in out
    assert "more than a linear map" in why_kept("block.router.weight", block.router, False)
    assert "bias" in why_kept("block.router.bias", block.router, False)
    assert "plan" in why_kept("block.plain.weight", block.plain, True)
