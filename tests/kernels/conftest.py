"""Which instruction set the CPU kernels run."""

import platform

import pytest

from minifloat.kernels import native

IS_ARM = platform.machine() in ("aarch64", "arm64")
LEVELS = [name for name in native.LEVELS if name == "plain" or name.startswith("neon") == IS_ARM]


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this processor has."""
    lib, wanted = native.library(), native.LEVELS.index(request.param)
    if lib is None:
        pytest.skip("minifloat was installed without a C compiler, so there is no fast row to test")
    if lib.mf_level(wanted) != wanted:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(native, "level", lambda: wanted)
    return str(request.param)
