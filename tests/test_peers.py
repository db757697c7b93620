"""The race against other libraries: who is timed, who is named as absent, and what the page says."""

import sys
import time

import pytest
import torch
from torch import Tensor

from benchmarks.kernels_cpu_peers import checked, our_rows
from benchmarks.peers import Built, Peer, gather
from benchmarks.peers.page import summary, times
from benchmarks.peers.pytorch import PEERS
from minifloat.timing import best

W = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
X = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
ROWS = our_rows() | PEERS


@torch.inference_mode()
@pytest.mark.parametrize("peer", ROWS.values(), ids=ROWS)
def test_every_copy_multiplies_by_the_weight_its_codes_stand_for(peer: Peer) -> None:
    first, second = (built := peer.build(W, 2)).calls
    error = checked(built, W, X)
    assert error < (0.2 if peer.bits == 4 else 0.05)
    assert torch.equal(first(X), second(X))


def test_a_layer_that_multiplies_by_another_weight_is_refused() -> None:
    built = Built([lambda x: x @ W.T], W.flip(0))
    with pytest.raises(ValueError, match="off its own weight's"):
        checked(built, W, X)


def test_libraries_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.peers.quanto", None)
    found, absent = gather(None)
    assert absent["optimum-quanto"].startswith("not installed")
    assert "ggml" in absent
    assert set(PEERS) <= set(found)


def test_the_page_compares_the_best_peer_with_our_best() -> None:
    ms = {"minifloat a": 2.0, "minifloat b": 1.0, "torch c": 3.0, "ggml d": 1.5}
    row = {"tokens": 4, "load": 0.5, "ms": ms}
    cell = {"shape": "64x256", "threads": 1, "rows": [row], "errors": dict.fromkeys(ms, 0.1)}
    cell["bits"] = dict(zip(ms, (4, 8, 4, 8), strict=True))
    assert summary([cell], bits=32)[-1] == "| 64x256, 1 | 1.50 (ggml d) |"
    assert summary([cell], bits=4)[-1] == "| 64x256, 1 | 1.50 (torch c) |"
    assert "| minifloat b | 8 | 10.00 | **1.000** |" in times(cell)


def test_a_slow_call_leaves_the_others_their_share_of_the_time() -> None:
    made = {"slow": 0, "fast": 0}

    def call(name: str, seconds: float, x: Tensor) -> Tensor:
        made[name] += 1
        time.sleep(seconds)
        return x

    rows = {
        "slow": lambda x: call("slow", 0.02, x),
        "fast": lambda x: call("fast", 0.001, x),
    }
    best(rows, X, seconds=0.06, rounds=2)
    assert made["slow"] == 4  # two rounds, each with a call that does not count
    assert made["fast"] > 8
