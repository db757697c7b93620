"""The selective scan of Mamba, fast enough on a CPU to train with.

Why this file exists: without its CUDA kernels, transformers walks through time under autograd, and
each step of the way back fills a gradient as long as the whole sequence. Here the steps of both ways
are written out (Gu and Dao, arXiv:2312.00752, equations 1a, 1b and 2 with the zero-order hold of A),
so that a step touches a few hundred kilobytes, and decays are computed again instead of kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import silu, softplus


class Scan(torch.autograd.Function):
    """y[t] = C[t] h[t] with h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t], from h = 0 on."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Of x, dt [time, batch, 1, channels], a [states, channels], b, c [time, batch, states, 1].

        Channels lie side by side in memory, so that sums over states are sums of rows.
        """
        length, batch, states, _ = b.shape
        h = x.new_empty(length + 1, batch, states, x.shape[3])
        h[0] = 0
        for before, now, step, put, into in zip(h[:-1], h[1:], dt, dt * x, b, strict=True):
            torch.mul(step, a, out=now).exp_().mul_(before).addcmul_(put, into)
        ctx.save_for_backward(x, dt, a, b, c, h)
        return c.mT @ h[1:]

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all five, walking back through time."""
        x, dt, a, b, c, h = ctx.saved_tensors
        by_h, by_dt = torch.empty_like(h[1:]), torch.empty_like(dt)
        later, by_a = torch.zeros_like(h[0]), torch.zeros_like(h[0])
        steps = zip(by_h, by_dt, above, c, dt, h[:-1], strict=True)
        for own, own_dt, up, out, step, before in reversed(list(steps)):
            torch.addcmul(later, up, out, out=own)
            later = (step * a).exp_().mul_(own)
            by_exponent = later * before
            by_a.addcmul_(by_exponent, step)
            torch.sum(by_exponent.mul_(a), 1, keepdim=True, out=own_dt)
        by_put = b.mT @ by_h
        by_b, by_c = by_h @ (dt * x).mT, h[1:] @ above.mT
        return by_put * dt, by_dt.addcmul_(by_put, x), by_a.sum(0), by_b, by_c


def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    return_last_state: bool = False,
    **_: Any,
) -> Tensor:
    """What transformers' `mamba_selective_scan` returns of sequences [batch, channels, time]."""
    if return_last_state:
        raise ValueError("this scan keeps no last state; call the model with use_cache=False")
    steps = softplus(dt + delta_bias[:, None])
    x_dt = (one.permute(2, 0, 1)[:, :, None].contiguous() for one in (x, steps))
    b_c = (one.permute(2, 0, 1)[..., None].contiguous() for one in (b, c))
    y = Scan.apply(*x_dt, a.mT.contiguous(), *b_c)[:, :, 0].permute(1, 2, 0)
    return (y + x * D[:, None]) * silu(z)


@contextmanager
def fast_scan() -> Iterator[None]:
    """Let Mamba models of transformers, called without a cache, scan with this file's function."""
    place = "transformers.models.mamba.modeling_mamba.mamba_selective_scan"
    with mock.patch(place, selective_scan):
        yield
