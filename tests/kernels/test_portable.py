"""The C files without any processor's own kernels: what runs where there are none."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minifloat import formats
from minifloat.kernels import fast, native
from minifloat.spec import QuantSpec

COMPILER = shutil.which("gcc")


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("links as gcc on Linux does")
    files = sorted(Path(native.__file__).parent.glob("*.c"))
    flags = ["-DMINIFLOAT_PORTABLE", "-shared", "-fPIC", "-O1", "-Wl,--no-undefined"]
    out = tmp_path_factory.mktemp("portable") / "portable.so"
    subprocess.run([COMPILER, *flags, *map(str, files), "-lm", "-o", str(out)], check=True)
    return native.load(out)


def test_nothing_is_missing(portable: ctypes.CDLL) -> None:
    """A symbol that only one processor has would keep the whole library from loading on another."""
    assert portable.mf_level(len(native.LEVELS)) == 0


def test_fp16_scales_say_nan(portable: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: portable)
    monkeypatch.setattr(native, "level", lambda: 0)
    keys = torch.randn(1, 2, 9, 64)
    keys[0, 1, 2, 5] = torch.nan
    held = fast.states(keys, QuantSpec(formats.INT8, (1, 4), formats.FP16))
    y = fast.attention_kv(torch.randn(1, 2, 1, 64), held, held, None, 0.1)
    assert y.isnan().any(-1)[0, :, 0].tolist() == [False, True]
