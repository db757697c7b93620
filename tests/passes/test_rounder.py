"""The rounding variable: soft weights, written-out gradients, scale awareness (card 2f)."""

import pytest
import torch
from torch import Tensor

from minifloat import formats
from minifloat.passes.rounder import Annealing, Rounder
from minifloat.qtensor import decode, scale_of
from minifloat.rounding import neighbours
from minifloat.spec import QuantSpec
from minifloat.tiles import expand

FORMATS = [formats.E2M1, formats.E3M0, formats.E1M2, formats.INT4, formats.NF4]


def rounder(
    fmt: formats.Format = formats.E2M1, *, scale_aware: bool = False, clip: float = 1.0
) -> tuple[Rounder, Tensor]:
    """A weight of five rows whose magnitudes differ, in groups of eight."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 24, generator=generator) * torch.logspace(-2, 1, 5)[:, None]
    spec = QuantSpec(fmt, (1, 8))
    scale = scale_of(clip * w, spec)
    return Rounder(w, spec, scale, scale_aware=scale_aware), w


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("scale_aware", [False, True])
def test_soft_weights_begin_at_the_clipped_weights(fmt: formats.Format, scale_aware: bool) -> None:
    found, w = rounder(fmt, scale_aware=scale_aware, clip=0.7)
    limit = expand(found.scale.values(found.spec), w.shape, found.spec.tile)
    clipped = torch.minimum(torch.maximum(w, fmt.min * limit), fmt.max * limit)
    torch.testing.assert_close(found.soften().detach(), clipped, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_hard_weights_are_neighbours_and_the_codes_are_theirs(fmt: formats.Format) -> None:
    found, w = rounder(fmt)
    generator = torch.Generator().manual_seed(1)
    found.logits.data = torch.randn(w.shape, generator=generator)
    scale = expand(found.scale.values(found.spec), w.shape, found.spec.tile)
    low, high = neighbours(w / scale, fmt)
    hard = found.hard()
    torch.testing.assert_close(decode(found.quantized()), hard, rtol=1e-6, atol=0)
    ends = torch.stack([low * scale, high * scale])
    assert bool(torch.isclose(ends, hard, rtol=1e-6, atol=0).any(0).all())


@pytest.mark.parametrize("beta", [None, 20.0, 7.5, 2.0])
@pytest.mark.parametrize("scale_aware", [False, True])
def test_written_gradients_are_those_of_autograd(beta: float | None, scale_aware: bool) -> None:
    found, w = rounder(scale_aware=scale_aware, clip=0.8)
    generator = torch.Generator().manual_seed(1)
    unit = found.gap.clamp(min=1e-30) if scale_aware else torch.ones(())
    found.logits.data = 3 * torch.randn(w.shape, generator=generator) * unit
    wanted = torch.randn(w.shape, generator=generator)

    logits = found.logits.detach().clone().requires_grad_()
    h = (1.2 * torch.sigmoid(logits / unit) - 0.1).clamp(0, 1)
    loss = ((found.base + h * found.gap) * wanted).sum()
    if beta is not None:
        loss = loss + 0.3 * (1 - (2 * h - 1).abs().pow(beta)).sum()
    (expected,) = torch.autograd.grad(loss, logits)

    (found.soften() * wanted).sum().backward()
    found.descend(beta, 0.3)
    assert found.logits.grad is not None
    assert bool((expected == 0).any())
    assert bool((expected != 0).any())
    torch.testing.assert_close(found.logits.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("scale_aware", "power"), [(False, 2), (True, 0)])
def test_bins_of_another_step_move_by_its_square_or_not_at_all(
    scale_aware: bool, power: int
) -> None:
    """Descent moves a soft weight by gap h' dV: ~ gap^2 plain, ~ gap^0 scale-aware (card 2f)."""
    found, w = rounder(scale_aware=scale_aware)
    found.logits.data.zero_()  # h = 1/2 everywhere: the slope of h is the same
    before = found.soften().detach().clone()
    found.soft.grad = torch.ones_like(w)
    found.descend(None, 0.0)
    chosen = torch.arange(16, 24)[found.gap[-1, 16:] > 0]  # a group: bins of a half, one, two units
    gap = found.gap[-1, chosen]
    assert found.logits.grad is not None
    found.logits.data -= 0.05 * found.logits.grad * (gap.amin() if scale_aware else 1 / gap.amax())
    moved = (before - found.soften().detach())[-1, chosen]
    fine, coarse = gap.argmin(), gap.argmax()
    ratio = float(gap[coarse] / gap[fine])
    assert ratio >= 4
    assert float(moved[coarse] / moved[fine]) == pytest.approx(ratio**power, rel=0.02)


@pytest.mark.parametrize("scale_aware", [False, True])
def test_leaning_keeps_the_hard_weights_and_brings_the_soft_ones_near(scale_aware: bool) -> None:
    found, _ = rounder(scale_aware=scale_aware)
    hard, soft = found.hard(), found.soften().detach().clone()
    found.lean(0.6)
    assert torch.equal(found.hard(), hard)
    expected = soft + 0.6 * (hard - soft)
    torch.testing.assert_close(found.soften().detach(), expected, rtol=1e-5, atol=1e-6)


def test_annealing_waits_and_then_falls() -> None:
    annealing = Annealing()
    assert annealing.beta(0.1) is None
    assert annealing.beta(0.2) == 20
    assert annealing.beta(1.0) == 2
    assert Annealing(warmup=0).beta(0) == 20
