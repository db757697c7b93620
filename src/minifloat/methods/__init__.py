"""Published systems by name, each a function from its hyper-parameters to a `Method`."""

import inspect
from collections.abc import Callable
from typing import Any

from minifloat.errors import UserError, unknown
from minifloat.method import Method
from minifloat.methods.fp4dit import fp4dit
from minifloat.methods.fp_diffusion import fp_diffusion
from minifloat.methods.zeroquant_fp import zeroquant_fp

METHODS: dict[str, Callable[..., Method]] = {
    "fp4dit": fp4dit,
    "fp-diffusion": fp_diffusion,
    "zeroquant-fp": zeroquant_fp,
}


def build(name: str, settings: dict[str, str]) -> Method:
    """A method by name, with settings given as text (the command line's KEY=VALUE)."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    parameters = inspect.signature(METHODS[name]).parameters
    arguments: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in parameters:
            raise unknown(f"setting of {name}", key, parameters)
        arguments[key] = _typed(key, text, parameters[key].default)
    return METHODS[name](**arguments)


def _typed(key: str, text: str, default: Any) -> Any:
    """Text as the type of the parameter's default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{key} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise UserError(f"{key} is a {type(default).__name__}, not {text!r}") from None
