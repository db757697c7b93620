"""Times of linear layers that are compared: interleaved calls over copies that no cache holds."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from minifloat.layers import QLinear
from minifloat.qtensor import encode
from minifloat.spec import LayerSpec

# Bytes of weights to rotate among: more than the last-level cache.
ROTATE = 96 << 20
Call = Callable[[Tensor], Tensor]


def packed(w: Tensor, spec: LayerSpec) -> QLinear:
    """A layer of weights [out, in] that are rounded to nearest."""
    assert spec.weight is not None
    return QLinear.pack(encode(w, spec.weight), spec, None, torch.float32)


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
    """Least milliseconds of each call, interleaved for at least so many rounds and seconds.

    With one thread it is the thread's own CPU time, which other work disturbs least; with more, the
    wall clock.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    least = dict.fromkeys(rows, float("inf"))
    started, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - started < seconds:
        for name, call in rows.items():
            call(x)  # the caches forget the row before
            before = clock()
            call(x)
            least[name] = min(least[name], 1e3 * (clock() - before))
        done += 1
    return least
