"""What a peer is to the benchmark: copies of one linear layer, and the weight that they stand for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from minifloat.timing import Call

Run = Callable[[], object]


class Built(NamedTuple):
    """Copies of one layer.

    Attributes:
        calls: each multiplies [tokens, in] by weights in memory of its own, so that they can rotate.
        weight: fp32 [out, in], what the library's own codes stand for.
    """

    calls: list[Call]
    weight: Tensor


@dataclass(frozen=True)
class Peer:
    """One way of a library to multiply.

    Attributes:
        bits: of a weight, without its scales.
        build: copies of a layer of the weight [out, in], for `torch.get_num_threads()` threads.
    """

    bits: int
    build: Callable[[Tensor, int], Built]


@lru_cache(maxsize=1)
def output(tokens: int, features: int) -> Tensor:
    """Memory for results [tokens, features], the same for all who ask in turn."""
    return torch.empty(tokens, features)


def bound(features: int, bind: Callable[[Tensor, Tensor], Run]) -> Call:
    """A call of a runtime that is told once where its input and output lie, as its users do.

    `bind(x, y)` answers what multiplies x [tokens, in] into y [tokens, features].
    """
    held: tuple[Tensor, Tensor, Run] | None = None

    def call(x: Tensor) -> Tensor:
        nonlocal held
        if held is None or held[0] is not x:
            y = output(len(x), features)
            held = x, y, bind(x, y)
        held[2]()
        return held[1]

    return call
