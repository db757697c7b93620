"""The compiled library; without a C compiler at install time there is none.

The files are plain C without Python or torch, so they build in a second and load with ctypes.
"""

import ctypes
import os
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

from minifloat.errors import unknown
from minifloat.kernels.interleave import suits
from minifloat.kernels.native import layer
from minifloat.spec import LayerSpec

# Of all processors, in the order of `enum level`: each includes those before of its own kind.
LEVELS = ("plain", "neon-dotprod", "avx2", "avx512", "avx512-vnni", "avx512-bf16")
_SIDE_BY_SIDE = LEVELS.index("avx512-vnni")  # has kernels for interleaved rows

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "mf_level": [_int],
    "mf_linear": [_pointer] * 2 + [_int, _pointer, _long, _pointer, _long, _int, _int],
    "mf_conv2d": [_pointer] * 2 + [_int, _pointer, _pointer, _long, _pointer, _int, _int],
    "mf_attention": [_pointer] * 3 + [_int] + [_pointer] * 9 + [ctypes.c_float] + [_int] * 2,
    "mf_states": [_pointer] * 2 + [_int] + [_pointer] * 4 + [_int] * 2,
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where it was not built."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    path = Path(__file__).with_name("_native" + suffix)
    return load(path) if path.is_file() else None


def load(path: Path) -> ctypes.CDLL:
    """The C files, compiled to a library."""
    found = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        getattr(found, name).argtypes = arguments
    return found


def refuses(spec: LayerSpec) -> str:
    """Why the library does not run such a layer, whatever its activations; empty if it does."""
    if library() is None:
        return "minifloat was installed without a C compiler"
    return "the weight is not quantized" if spec.weight is None else layer.refuses(spec.weight)


@cache
def level() -> int:
    """Index in LEVELS of the instruction set that runs: the best, or at most MINIFLOAT_ISA's."""
    lib = library()
    asked = os.environ.get("MINIFLOAT_ISA", LEVELS[-1])
    if asked not in LEVELS:
        raise unknown("instruction set in MINIFLOAT_ISA", asked, LEVELS)
    return 0 if lib is None else int(lib.mf_level(LEVELS.index(asked)))


def interleaves(spec: LayerSpec, shape: tuple[int, int]) -> bool:
    """Whether the library prefers such a layer's rows side by side (`interleave.py`)."""
    return reads_interleaved() and not refuses(spec) and suits(spec, shape)


def reads_interleaved() -> bool:
    """Whether there are kernels for rows side by side here."""
    return level() >= _SIDE_BY_SIDE


@cache
def function(name: str) -> Callable[..., int]:
    """One of the library's, by its name in C."""
    found: Callable[..., int] = getattr(library(), name)
    return found
