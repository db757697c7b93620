"""Times of linear layers that are compared: interleaved calls over copies that no cache holds."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from minifloat.layers import QLinear
from minifloat.qtensor import encode
from minifloat.siblings import make_ready
from minifloat.spec import LayerSpec

# Bytes of weights to rotate among: more than the last-level cache.
ROTATE = 96 << 20
# Seconds of a call's turn: short calls are made more than once.
_TURN = 5e-3
Call = Callable[[Tensor], Tensor]


def packed(w: Tensor, spec: LayerSpec) -> QLinear:
    """A layer of weights [out, in] that are rounded to nearest."""
    assert spec.weight is not None
    return QLinear.pack(encode(w, spec.weight), spec, None, torch.float32)


def packed_copies(w: Tensor, spec: LayerSpec, count: int) -> list[QLinear]:
    """So many of it, laid out as a model's layers are before it runs."""
    first = packed(w, spec)
    layers = [first, *(deepcopy(first) for _ in range(count - 1))]
    make_ready(nn.ModuleList(layers))
    return layers


def plain(w: Tensor) -> nn.Linear:
    """torch's layer in fp32."""
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data.copy_(w)
    return linear


def half(w: Tensor) -> Call:
    """torch's product in bf16, the cast of fp32 activations included."""
    short = w.bfloat16()
    return lambda x: nn.functional.linear(x.bfloat16(), short)


def dynamic_int8(w: Tensor) -> nn.Module:
    """torch's INT8 layer (FBGEMM or oneDNN), activations quantized in every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            nn.Sequential(plain(w)), {nn.Linear}, dtype=torch.qint8
        )
    return layer


def peers(w: Tensor) -> dict[str, Call]:
    """torch's own layers of a weight [out, in], each over copies that are taken in turn."""
    size = w.numel()
    return {
        "torch fp32": rotating([plain(w) for _ in range(copies(4 * size))]),
        "torch bf16": rotating([half(w) for _ in range(copies(2 * size))]),
        "torch int8": rotating([dynamic_int8(w) for _ in range(copies(size))]),
    }


def copies(size: int) -> int:
    """How many layers of so many bytes to rotate among."""
    return min(64, max(1, ROTATE // size))


def rotating(layers: Sequence[Call]) -> Call:
    """A call that takes another copy each time."""
    turn = [0]

    def rotate(x: Tensor) -> Tensor:
        turn[0] = (turn[0] + 1) % len(layers)
        return layers[turn[0]](x)

    return rotate


def best(rows: Mapping[str, Call], x: Tensor, seconds: float, rounds: int = 5) -> dict[str, float]:
    """Least milliseconds of each call: turns go round at least `rounds` times, then until each call's
    share of the seconds is spent, so that a slow one does not take the others' time.

    With one thread it is the process's CPU time, which other work disturbs least and which counts
    libraries that compute on a thread of their own; with more, the wall clock.
    """
    alone = torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    least, spent = dict.fromkeys(rows, float("inf")), dict.fromkeys(rows, 0.0)
    done, share = 0, seconds / len(rows)
    while turns := [name for name in rows if done < rounds or spent[name] < share]:
        for name in turns:
            began = time.perf_counter()
            if not alone:
                _rest()
            least[name] = min(least[name], _turn(rows[name], x, clock))
            spent[name] += time.perf_counter() - began
        done += 1
    return least


def _turn(call: Call, x: Tensor, clock: Callable[[], float]) -> float:
    """Least milliseconds of the calls of one turn."""
    call(x)  # the caches forget the row before
    least, ends = float("inf"), time.perf_counter() + _TURN
    while least == float("inf") or time.perf_counter() < ends:
        before = clock()
        call(x)
        least = min(least, 1e3 * (clock() - before))
    return least


def _rest() -> None:
    """Wait until no thread of this process spins for more work, as pools do after a call."""
    for _ in range(200):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < 2e-4:
            return
