"""What benchmarks share: rows of a study that can stop and go on; its end, with table and versions."""

import json
import platform
import statistics
from collections.abc import Iterator, Sequence
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that a study has so far, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Write a finished row down at once, and show it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def pending(
    rows: Sequence[dict[str, Any]], arms: Sequence[str], seeds: int
) -> Iterator[tuple[str, int]]:
    """The runs (arm, seed) that a study lacks, seed by seed."""
    known = {(row["arm"], row["seed"]) for row in rows}
    return ((a, s) for s in range(seeds) for a in arms if (a, s) not in known)


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean, with the standard deviation where there are several values."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"
