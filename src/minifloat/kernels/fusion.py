"""What a model computes just before a packed layer, so that one kernel does it and puts the result on
the layer's grid: ViDiT-Q's fusions (arXiv 2406.02540) and QServe's (arXiv 2405.04532).

Everything is fp32 until the grid. A model in bf16 rounds after its norm and before its gain; the fused
kernel does not, so it is nearer to the model in fp32.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from minifloat.errors import UserError
from minifloat.formats import E4M3, FP32
from minifloat.qtensor import scale_of
from minifloat.rounding import round_to
from minifloat.scales import Scale
from minifloat.spec import QuantSpec

Kind = Literal["plain", "rms", "layer", "silu_mul", "gelu", "gelu_tanh"]
_NORMS = ("rms", "layer")


class Fusion(NamedTuple):
    """A function of activations [tokens, columns], token by token.

    Attributes:
        kind: RMSNorm, LayerNorm, SiLU of the activations times `other`, GELU (by erf or by tanh), or
            the activations as they are.
        eps: of a norm, added to the mean of squares.
        weight, bias: of a norm, [columns].
        gain, shift: AdaLN's [images, columns] after a norm: y (1 + gain) + shift. The tokens of an
            image follow each other, and all images have as many.
        other: [tokens, columns].
    """

    kind: Kind = "plain"
    eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    other: Tensor | None = None

    def check(self, x: Tensor) -> None:
        """Refuse tensors that the function does not take, or whose shapes do not fit."""
        tokens, columns = x.shape
        norm = self.kind in _NORMS
        wanted = {"weight": norm, "bias": norm, "gain": norm, "shift": norm}
        for name, takes in (wanted | {"other": self.kind == "silu_mul"}).items():
            given: Tensor | None = getattr(self, name)
            if given is not None and not takes:
                raise UserError(f"{self.kind} takes no {name}")
            if given is not None and given.shape[-1] != columns:
                raise UserError(f"{name} is for {given.shape[-1]} columns, the input has {columns}")
        if (self.gain is None) != (self.shift is None):
            raise UserError("gain and shift come together")
        if self.gain is not None and (not len(self.gain) or tokens % len(self.gain)):
            raise UserError(f"{tokens} tokens are not shared evenly by {len(self.gain)} images")
        if self.kind == "silu_mul" and (self.other is None or self.other.shape != x.shape):
            raise UserError("silu_mul multiplies two inputs of one shape; give `other`")

    def of(self, x: Tensor) -> Tensor:
        """The readable twin: fp32 [tokens, columns]."""
        self.check(x)
        x = x.float()
        if self.kind == "silu_mul":
            assert self.other is not None
            return functional.silu(x) * self.other.float()
        if self.kind in ("gelu", "gelu_tanh"):
            return functional.gelu(x, approximate="none" if self.kind == "gelu" else "tanh")
        if self.kind == "plain":
            return x
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            x = x * self.weight.float()
        if self.bias is not None:
            x = x + self.bias.float()
        if self.gain is not None and self.shift is not None:
            each = x.unflatten(0, (len(self.gain), -1))  # type: ignore[no-untyped-call]
            x = (each * (1 + self.gain.float()[:, None]) + self.shift.float()[:, None]).flatten(
                0, 1
            )
        return x


def quantize_activation(
    x: Tensor, spec: QuantSpec, static: Scale | None = None, fusion: Fusion | None = None
) -> tuple[Tensor, Tensor]:
    """Codes of fusion(x) [tokens, columns], int8 or float8_e4m3fn, and their fp32 scales [tokens].

    Args:
        x: fp32, fp16 or bf16.
        spec: INT2 to INT8 or E4M3 with one scale a token or for all (`refuses`).
        static: a calibrated scale; None takes those of the largest magnitudes.
        fusion: what is done to x first; nothing if None.
    """
    y = (fusion or Fusion()).of(x)
    scale = (static or scale_of(y, spec)).values(spec)
    codes = round_to(y / scale, spec.format)
    dtype = torch.int8 if spec.format.is_integer else torch.float8_e4m3fn
    lost = codes.isnan().any(-1, keepdim=True)  # codes cannot say NaN: the scale does
    scale = scale.masked_fill(lost, torch.nan).expand(len(y), 1)
    return codes.masked_fill(lost, 0).to(dtype), scale[:, 0].contiguous()


def refuses(spec: QuantSpec) -> str:
    """Why activations do not become codes with a scale a token; empty if they do."""
    grid = spec.format == E4M3 or (spec.format.is_integer and spec.format.signed)
    scaled = (spec.tile == (1, -1) and spec.dynamic) or spec.tile == (-1, -1)
    if grid and scaled and spec.scale == FP32 and not spec.zero_point:
        return ""
    return (
        f"activations of {spec} are no signed integers or E4M3 with an fp32 scale a token or in all"
    )
