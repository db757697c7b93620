"""Tensors with notes on disk: a file is whole and synced, or it is not there."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
    """Write a safetensors file that takes its name only when it is whole; no two share memory.

    Raises:
        OSError, SafetensorError: there is no room, or no right to write.
    """
    kept = {key: value.contiguous() for key, value in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(kept, partial, {"notes": json.dumps(dict(notes)), "digest": _digest(kept)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and notes of a file; None if there is none, or a failing disk has damaged it."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            known = file.metadata()
    except (OSError, SafetensorError):
        return None
    if _digest(tensors) != known["digest"]:
        return None
    return tensors, json.loads(known["notes"])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
