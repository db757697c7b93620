"""The state of work on one window, so that a run that was killed within a long one goes on there."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from minifloat.calibrate import durable
from minifloat.errors import UserError

_SHARE = 20  # a twentieth of the time at most goes to writing states


class Draft:
    """A file that the latest state replaces.

    Args:
        path: the file.
        every: seconds that lie between two states at least, more if writing one takes long; with 0
            a state is always worth writing.
    """

    def __init__(self, path: Path, every: float) -> None:
        self._path, self._every = path, every
        self._pause = every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether a state is worth writing."""
        return time.monotonic() - self._last >= self._pause

    def save(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Replace the state."""
        started = time.monotonic()
        try:
            durable.write(self._path, tensors, notes)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot keep the state of a block in {self._path.parent} ({error}); make room and "
                "start again, with --resume if blocks were finished"
            ) from error
        self._last = time.monotonic()
        if self._every:
            self._pause = max(self._every, _SHARE * (self._last - started))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The latest state, if one is there and whole."""
        return durable.read(self._path)

    def drop(self) -> None:
        """Forget it: the window is finished."""
        self._path.unlink(missing_ok=True)
