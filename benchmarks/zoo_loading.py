"""How long the committed models of the zoo take to load, and how large they are.

    python -m benchmarks.zoo_loading

Seconds of the wall clock from the name to a model that can run, once its libraries are imported: each
is loaded several times and the fastest counts. Nothing is fetched.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries look

import minifloat
from minifloat.models.zoo import names

ZOO = Path(__file__).parents[1] / "zoo"
TIMES = 4  # the first of them imports


def seconds(name: str) -> float:
    """Of the fastest load."""
    found = []
    for _ in range(TIMES):
        started = time.perf_counter()
        minifloat.zoo(name)
        found.append(time.perf_counter() - started)
    return min(found)


def main() -> None:
    print("| model | safetensors, MB | seconds to load |\n|---|---|---|")
    total = 0
    for name in names():
        size = sum(path.stat().st_size for path in (ZOO / name).rglob("*.safetensors"))
        total += size
        print(f"| {name} | {size / 1e6:.1f} | {seconds(name):.2f} |", flush=True)
    others = sum(path.stat().st_size for path in ZOO.rglob("*.safetensors")) - total
    print(f"| judge and held-out pictures | {others / 1e6:.1f} | |")
    print(f"| all | {(total + others) / 1e6:.1f} | |")


if __name__ == "__main__":
    main()
