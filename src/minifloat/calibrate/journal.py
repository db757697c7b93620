"""Finished blocks on disk, so that a run that was killed can go on.

A block is one safetensors file that takes its name only when it is whole and synced. Activations are
not kept: going on runs the finished blocks again, which costs two forwards a block and gives the very
same bits, while activations would take many times the model's room.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minifloat.errors import UserError
from minifloat.layers import QLayer, packed_like
from minifloat.shards import Entry, entries_of
from minifloat.spec import LayerSpec

_SETTINGS = "settings.json"


class Journal:
    """The folder of one unfinished run.

    Args:
        folder: made if it is not there.
        settings: all that decides the result, as JSON; a journal belongs to one set of them.
        resume: go on with what the folder holds.

    Raises:
        UserError: to resume with other settings, or to start anew over finished blocks of the same.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        self._folder = folder
        settings = json.loads(json.dumps(settings))
        found = _read_settings(folder / _SETTINGS)
        if resume and found is None:
            raise UserError(f"there is no unfinished run to resume in {folder}")
        if resume and found != settings:
            raise UserError(f"the unfinished run had other settings: {_changes(found, settings)}")
        done = len(list(folder.glob("*.safetensors")))
        if not resume and found == settings and done:
            raise UserError(
                f"a run with these settings was stopped after {done} blocks: go on with --resume, "
                f"or delete {folder} to start anew"
            )
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")

    def keep(self, name: str, model: nn.Module, outcome: dict[str, dict[str, Any]]) -> None:
        """Write a finished block down: its packed layers' specs, its tensors, what is known of it."""
        layers = {}
        for layer_name in outcome:
            layer = model.get_submodule(layer_name)
            assert isinstance(layer, QLayer)
            layers[layer_name] = {"spec": layer.spec.to_json(), "rank": layer.rank}
        state = model.get_submodule(name).state_dict()
        tensors = {key: value.contiguous().clone() for key, value in state.items()}
        notes = {"layers": layers, "outcome": outcome, "digest": _digest(tensors)}
        final = self._folder / f"{name}.safetensors"
        partial = final.with_suffix(".partial")
        try:
            save_file(tensors, partial, {"block": json.dumps(notes)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(final)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot keep the finished block {name} in {self._folder} ({error}); once there is "
                "room, --resume goes on from the blocks before it"
            ) from error

    def tensors(self) -> dict[str, Entry]:
        """Where every tensor of the finished blocks lies, by its name in the model."""
        return {
            f"{file.stem}.{key}": entry
            for file in self._folder.glob("*.safetensors")
            for key, entry in entries_of(file)
        }

    def restore(self, name: str, model: nn.Module) -> dict[str, dict[str, Any]] | None:
        """Put a block's packed layers in place and return its outcome; None if it was not finished.

        A file that a failing disk has damaged counts as not finished.
        """
        try:
            with safe_open(self._folder / f"{name}.safetensors", framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                notes = json.loads(file.metadata()["block"])
        except (OSError, SafetensorError):
            return None
        if _digest(tensors) != notes["digest"]:
            return None
        for layer_name, kept in notes["layers"].items():
            old = model.get_submodule(layer_name)
            layer = packed_like(old, LayerSpec.from_json(kept["spec"]), kept["rank"])
            model.set_submodule(layer_name, layer)
        model.get_submodule(name).load_state_dict(tensors)
        outcome: dict[str, dict[str, Any]] = notes["outcome"]
        return outcome


def fingerprint(model: nn.Module) -> str:
    """Tells models apart by names, shapes, types and first values of all parameters it holds."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.is_meta:
            continue
        first = parameter.detach().reshape(-1)[:1024].float().cpu()
        digest.update(first.numpy().tobytes())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(
            tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return settings


def _changes(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    before = before or {}
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return "; ".join(f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names)
