"""Runs of a model that wait at every block, so that all calibration batches advance together.

A run is the model's own forward in a thread. Where it calls a block, the thread hands the call over
and sleeps until it is given the block's output. So chains, skip connections and conditioning need no
code here, every block is computed once a stream, and what a model keeps between two blocks (the
skips of a U-Net) waits in the frames of its own forward. One thread works at a time.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

_here = threading.local()


@dataclass(frozen=True)
class Call:
    """A call of the block `name`, with its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Cancelled(BaseException):
    """Unwinds a run that nobody goes on with; no model's `except Exception` catches it."""


class Run:
    """One run; `call` is the block that it waits at, None once it has ended."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._outputs: SimpleQueue[Any] = SimpleQueue()
        self._calls: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.call: Call | None = None

    def start(self) -> None:
        """Run to the first block."""
        self._thread.start()
        self._wait()

    def resume(self, output: Any) -> None:
        """Give the block's output to the run and let it go on to the next block."""
        self._outputs.put(output)
        self._wait()

    def cancel(self) -> None:
        """End the run where it waits."""
        if self.call is not None:
            self._outputs.put(_Cancelled())
            self._thread.join()
            self.call = None

    def hand_over(self, call: Call) -> Any:
        """In the run's thread: wait for the output of a block."""
        self._calls.put(call)
        output = self._outputs.get()
        if isinstance(output, _Cancelled):
            raise output
        return output

    def _wait(self) -> None:
        self.call = None
        found = self._calls.get()
        if isinstance(found, BaseException):
            raise found
        self.call = found

    def _work(self) -> None:
        _here.run = self
        try:
            with torch.no_grad():  # gradient mode belongs to a thread
                self._function()
            self._calls.put(None)
        except BaseException as error:  # handed to the thread that waits for this run
            self._calls.put(error)


@contextmanager
def waiting_at(
    blocks: Mapping[str, nn.Module], functions: Sequence[Callable[[], Any]]
) -> Iterator[list[Run]]:
    """Start a run of every function; each waits at the first of the blocks that it calls."""
    runs = [Run(function) for function in functions]
    try:
        for name, block in blocks.items():
            block.forward = _handing_over(name, block.forward)
        for run in runs:
            run.start()
        yield runs
    finally:
        for run in runs:
            run.cancel()
        for block in blocks.values():
            del block.forward


def _handing_over(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward that waits inside runs and computes elsewhere."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        run: Run | None = getattr(_here, "run", None)
        if run is None:
            return original(*args, **kwargs)
        return run.hand_over(Call(name, args, kwargs))

    return forward
