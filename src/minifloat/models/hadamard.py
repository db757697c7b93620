"""Orthogonal Hadamard matrices of any width, by construction: no tables, no downloads.

An order is built as Sylvester's doubling, by Paley's two constructions over a finite field (J. Math.
Phys. 12, 1933), by Williamson's array (Duke Math. J. 11, 1944) or as a Kronecker product of these. A
width that has none is a block-diagonal matrix of the largest orders that fit, the largest first.
"""

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from minifloat.errors import UserError

# Half rows of four symmetric circulant matrices whose squares add up to 4n: bit i - 1 of the number
# says that entries i and n - i are -1. Found by our own search over all symmetric rows.
_WILLIAMSON = {23: (752, 794, 671, 1162), 29: (1765, 9461, 459, 7204)}


# Factors up to this order are one dense product.
_DENSE = 64


def rotation(width: int, seed: int | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
    """An orthogonal matrix [width, width]: Hadamard, its rows' signs random if there is a seed."""
    blocks = [hadamard(order, dtype) / math.sqrt(order) for order in blocks_of(width)]
    matrix = blocks[0]
    if len(blocks) > 1:
        matrix = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    if seed is None:
        return matrix
    return matrix * _signs(width, seed)[:, None].to(dtype)


def turn(x: Tensor, seed: int | None = None) -> Tensor:
    """x [..., width] times `rotation(width, seed)`, by the factors of each block and without the matrix.

    Takes width * (the sum of the factors) multiplications a row in place of width^2.
    """
    width = x.shape[-1]
    if seed is not None:
        x = x * _signs(width, seed).to(x)
    spans = [_transform(span) for span in torch.split(x, blocks_of(width), -1)]
    return spans[0] if len(spans) == 1 else torch.cat(spans, -1)


def _transform(x: Tensor) -> Tensor:
    """x [..., n] times the Hadamard matrix of order n over its root."""
    order, sizes = x.shape[-1], factors(x.shape[-1])
    y = x.reshape(*x.shape[:-1], *sizes)
    for axis, size in enumerate(sizes, start=-len(sizes)):
        h = hadamard(size, torch.float64).to(y) / math.sqrt(size)
        y = (y.movedim(axis, -1) @ h).movedim(-1, axis)
    return y.reshape(*x.shape[:-1], order)


def factors(n: int) -> list[int]:
    """The orders whose Kronecker product is `hadamard(n)`, neighbours joined up to 64."""
    how, size = _construction(n) or ("", 0)
    if n <= _DENSE or how != "product":
        return [n]
    first, *rest = factors(n // size)
    return [size * first, *rest] if size * first <= _DENSE else [size, first, *rest]


def _signs(width: int, seed: int) -> Tensor:
    drawn = torch.randint(0, 2, (width,), generator=torch.Generator().manual_seed(seed))
    return 2 * drawn - 1


def blocks_of(width: int) -> list[int]:
    """The orders whose blocks make up a width, the largest that fits first."""
    if width < 1:
        raise UserError(f"a rotation needs a width of at least 1, not {width}")
    orders = []
    while width:
        orders.append(next(n for n in range(width, 0, -1) if is_order(n)))
        width -= orders[-1]
    return orders


@cache
def is_order(n: int) -> bool:
    """Whether `hadamard` can build this order."""
    return n in (1, 2) or (n % 4 == 0 and _construction(n) is not None)


@cache
def _construction(n: int) -> tuple[str, int] | None:
    """How an order is built: by a product with a factor, or from a field or an array of a size."""
    if n % 2 == 0 and is_order(n // 2):
        return "product", 2
    if _prime_power(n - 1) and (n - 1) % 4 == 3:
        return "paley1", n - 1
    if _prime_power(n // 2 - 1) and (n // 2 - 1) % 4 == 1:
        return "paley2", n // 2 - 1
    if n // 4 in _WILLIAMSON:
        return "williamson", n // 4
    for factor in range(4, math.isqrt(n) + 1, 4):
        if n % factor == 0 and is_order(factor) and is_order(n // factor):
            return "product", factor
    return None


def hadamard(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix [n, n] of +-1 with orthogonal rows.

    Raises:
        UserError: no construction here has this order; `rotation` serves it in blocks.
    """
    if n == 1:
        return torch.ones(1, 1, dtype=dtype)
    if n == 2:
        return torch.tensor([[1, 1], [1, -1]], dtype=dtype)
    how, size = (is_order(n) and _construction(n)) or ("", 0)
    if how == "product":
        return torch.kron(hadamard(size, dtype), hadamard(n // size, dtype))
    if how == "paley1":
        return _paley1(size).to(dtype)
    if how == "paley2":
        return _paley2(size).to(dtype)
    if how == "williamson":
        return _williamson(size).to(dtype)
    raise UserError(f"no Hadamard matrix of order {n} is known here; rotation({n}) works in blocks")


def _paley1(q: int) -> Tensor:
    """Order q + 1 for q = 3 mod 4: I + [[0, 1], [-1, Q]] with Q antisymmetric."""
    skew = torch.zeros(q + 1, q + 1)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = _jacobsthal(q)
    return skew + torch.eye(q + 1)


def _paley2(q: int) -> Tensor:
    """Order 2 (q + 1) for q = 1 mod 4: the entries of [[0, 1], [1, Q]] replaced by 2 x 2 matrices."""
    symmetric = torch.zeros(q + 1, q + 1)
    symmetric[0, 1:], symmetric[1:, 0] = 1, 1
    symmetric[1:, 1:] = _jacobsthal(q)
    ones, zeros = torch.tensor([[1.0, 1], [1, -1]]), torch.tensor([[1.0, -1], [-1, -1]])
    return torch.kron(symmetric, ones) + torch.kron(torch.eye(q + 1), zeros)


def _williamson(n: int) -> Tensor:
    """Order 4n from four symmetric circulant matrices A, B, C, D with A^2 + B^2 + C^2 + D^2 = 4n I."""
    distance = torch.arange(n)
    places = (distance[:, None] - distance) % n
    places = torch.minimum(places, n - places)
    a, b, c, d = (
        torch.tensor([1.0] + [-1.0 if bits >> i & 1 else 1.0 for i in range(n // 2)])[places]
        for bits in _WILLIAMSON[n]
    )
    rows = ((a, b, c, d), (-b, a, -d, c), (-c, d, a, -b), (-d, -c, b, a))
    return torch.cat([torch.cat(row, 1) for row in rows])


def _jacobsthal(q: int) -> Tensor:
    """Q[i, j] = the quadratic character of a_i - a_j over the field of q elements: 0, 1 or -1."""
    p, k = _prime_power(q) or (q, 1)
    character = torch.zeros(q)
    for power, element in enumerate(_powers(p, k)):
        character[sum(digit * p**i for i, digit in enumerate(element))] = 1 - 2 * (power % 2)
    numbers, index = torch.arange(q), torch.zeros(q, q, dtype=torch.int64)
    for i in range(k):
        digit = numbers // p**i % p
        index += (digit[:, None] - digit) % p * p**i
    return character[index]


def _powers(p: int, k: int) -> list[tuple[int, ...]]:
    """All powers of x in the field of p^k elements, as coefficients, from a primitive polynomial."""
    for tail in itertools.product(range(p), repeat=k):
        found: list[tuple[int, ...]] = []
        element = (1, *[0] * (k - 1))
        while element not in found[:1] and any(element):
            found.append(element)
            carry, shifted = element[-1], (0, *element[:-1])
            element = tuple((s + carry * t) % p for s, t in zip(shifted, tail, strict=True))
            if len(found) >= p**k:
                break
        if len(found) == p**k - 1 and any(element):
            return found
    raise AssertionError(f"{p}^{k} is no prime power")


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p prime, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    k = round(math.log(q, p))
    return (p, k) if p**k == q else None
