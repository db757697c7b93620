"""The `gguf` package, which is an extra."""

import importlib
from typing import Any

from minifloat.errors import UserError


def load_package() -> Any:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise UserError(
            "GGUF files need the package gguf; pip install 'minifloat[gguf]'"
        ) from error
