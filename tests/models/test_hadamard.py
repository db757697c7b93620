"""Hadamard matrices by construction: entries of one size, orthogonal rows, at any width."""

import math

import pytest
import torch

from minifloat.errors import UserError
from minifloat.models.hadamard import blocks_of, factors, hadamard, is_order, rotation, turn

# Widths of layers and heads of published models: SmolLM2, Llama, Gemma, Qwen, SigLIP, DiT, Phi ...
WIDTHS = [576, 768, 960, 1024, 1152, 1280, 1536, 1600, 1792, 2048, 2304, 2560, 2816, 3072, 3584]

# Orders up to 400 that no construction here reaches.
MISSING = [156, 172, 188, 236, 260, 268, 292, 324, 356, 372, 376]


def defect(matrix: torch.Tensor, rows: slice = slice(None)) -> float:
    """How far the rows are from orthonormal among all."""
    identity = torch.eye(len(matrix), dtype=torch.float64)
    return float((matrix[rows] @ matrix.T - identity[rows]).abs().max())


def test_every_width_up_to_512_is_orthogonal() -> None:
    """All rows of every order; of widths made up of blocks, which are orders again, every 16th."""
    for width in range(1, 513):
        rows = slice(None) if is_order(width) else slice(0, None, 16)
        assert defect(rotation(width, seed=width if width % 2 else None), rows) < 1e-12, width


@pytest.mark.parametrize("width", WIDTHS)
def test_the_widths_of_models_are_one_block(width: int) -> None:
    assert blocks_of(width) == [width]
    matrix = rotation(width, seed=0)[:64]
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, width**-0.5))
    assert float((matrix @ matrix.T - torch.eye(64, dtype=torch.float64)).abs().max()) < 1e-12


def test_all_orders_up_to_400_are_built_but_those_of_the_list() -> None:
    """Orders beyond 2 are multiples of 4 (Hadamard); the conjecture says that each of them exists."""
    assert [n for n in range(4, 401, 4) if not is_order(n)] == MISSING
    assert [n for n in range(1, 513) if n % 4 and is_order(n)] == [1, 2]


def test_entries_are_plus_and_minus_one() -> None:
    for n in filter(is_order, range(1, 200)):
        matrix = hadamard(n)
        assert torch.equal(matrix.abs(), torch.ones(n, n, dtype=torch.float64))


def test_a_width_without_a_matrix_is_cut_into_the_largest_blocks() -> None:
    assert blocks_of(92 + 7) == [96, 2, 1]
    assert blocks_of(4304)[0] >= 4200
    with pytest.raises(UserError, match=r"rotation\(156\) works in blocks"):
        hadamard(156)
    with pytest.raises(UserError, match="at least 1"):
        rotation(0)


@pytest.mark.parametrize("width", [1, 12, 64, 99, 128, 576, 960, 1536, 2880])
@pytest.mark.parametrize("seed", [None, 5])
def test_turning_is_the_product_with_the_matrix(width: int, seed: int | None) -> None:
    x = torch.randn(3, 2, width, dtype=torch.float64)
    torch.testing.assert_close(turn(x, seed), x @ rotation(width, seed))


def test_turning_takes_few_multiplications() -> None:
    """The factors multiply to the width, and add up to far less."""
    for width in WIDTHS:
        assert math.prod(factors(width)) == width
        assert sum(factors(width)) < max(width / 6, 200)


def test_signs_follow_the_seed() -> None:
    assert torch.equal(rotation(64, seed=3), rotation(64, seed=3))
    assert not torch.equal(rotation(64, seed=3), rotation(64, seed=4))


def test_a_rotation_spreads_a_lone_channel_evenly() -> None:
    """What it is for: the largest entry of a one-hot vector falls to 1 / sqrt(width)."""
    outlier = torch.zeros(2880, dtype=torch.float64)
    outlier[17] = 100
    spread = outlier @ rotation(2880, seed=0)
    torch.testing.assert_close(spread.abs(), torch.full_like(spread, 100 / 2880**0.5))
