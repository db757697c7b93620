"""Other libraries' linear layers on the CPU, a file for each: which of them are here, and their rows."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.peers.layer import Built, Peer

# The files that need nothing but a package of the registry, and the package.
PACKAGES = {
    "pytorch": "torch",
    "onnx_runtime": "onnxruntime",
    "openvino_cpu": "openvino",
    "bits_and_bytes": "bitsandbytes",
    "quanto": "optimum-quanto",
    "torch_ao": "torchao",
}

__all__ = ["Built", "Peer", "gather", "versions"]


def gather(ggml: Path | None) -> tuple[dict[str, Peer], dict[str, str]]:
    """The rows of every library that is here, and why the others are not.

    `ggml` is the folder of libggml.so and its CPU libraries.
    """
    found: dict[str, Peer] = {}
    absent = {}
    for file, package in PACKAGES.items():
        try:
            found |= import_module(f"benchmarks.peers.{file}").PEERS
        except ImportError as error:
            absent[package] = f"not installed ({error})"
    if ggml is None:
        absent["ggml"] = "no --ggml FOLDER was given"
    else:
        found |= import_module("benchmarks.peers.ggml").peers(ggml)
    return found, absent


def versions(ggml: Path | None) -> dict[str, str]:
    """Of every library that is here."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if ggml is not None:
        library = import_module("benchmarks.peers.ggml").library(ggml)
        found["ggml"] = library.ggml_version().decode()
    return found
