"""The Frechet distance: known Gaussians, and an interval that covers zero only where it should."""

import pytest
import torch

from minifloat.evaluate.frechet import frechet, frechet_change


def drawn(count: int, shift: float = 0.0, spread: float = 1.0, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return shift + spread * noise


def test_the_distance_of_known_gaussians() -> None:
    one = drawn(50_000)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, drawn(50_000, seed=1)) == pytest.approx(0, abs=1e-3)
    # Three features, each |m1 - m2|^2 + (s1 - s2)^2.
    assert frechet(one, drawn(50_000, shift=2, seed=1)) == pytest.approx(3 * 4, rel=0.02)
    assert frechet(one, drawn(50_000, spread=3, seed=1)) == pytest.approx(3 * 4, rel=0.02)


def test_an_interval_covers_zero_for_noise_and_not_for_a_shift() -> None:
    references, before = drawn(500, seed=2), drawn(100)
    noise = 0.01 * drawn(100, seed=3)
    same = frechet_change(before + noise, before, references)
    assert same.low <= 0 <= same.high
    assert same.high - same.low < 0.05  # of pairs; two independent draws would differ by more
    farther = frechet_change(before + 1 + noise, before, references)
    assert farther.low > 0
    assert farther.low <= farther.value <= farther.high
