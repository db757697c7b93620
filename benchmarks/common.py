"""What every benchmark does at its end: print the table and the versions, keep the rows as JSON."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def finish(
    rows: Sequence[dict[str, Any]], table: str, packages: Sequence[str], path: Path | None
) -> None:
    """Print `table` and the versions of `packages`; write rows and versions to `path`, if any."""
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    print(table)
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"{torch.get_num_threads()} threads")
    if path is not None:
        path.write_text(json.dumps({"rows": rows, "versions": versions}, indent=2) + "\n")
