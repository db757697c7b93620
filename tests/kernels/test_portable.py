"""The C files without any processor's own kernels: what runs where there are none."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minifloat.kernels import native

COMPILER = shutil.which("gcc")


@pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="links as gcc on Linux does"
)
def test_nothing_is_missing_on_other_processors(tmp_path: Path) -> None:
    """A symbol that only one processor has would keep the whole library from loading on another."""
    files = sorted(Path(native.__file__).parent.glob("*.c"))
    flags = ["-DMINIFLOAT_PORTABLE", "-shared", "-fPIC", "-O0", "-Wl,--no-undefined"]
    command = [str(COMPILER), *flags, *map(str, files), "-lm"]
    out = tmp_path / "portable.so"
    subprocess.run([*command, "-o", str(out)], check=True)
    assert ctypes.CDLL(str(out)).mf_level(len(native.LEVELS)) == 0
