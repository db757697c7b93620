"""Finished blocks on disk, so that a run that was killed can go on.

A block is one safetensors file that takes its name only when it is whole and synced. Activations are
not kept: going on runs the finished blocks again, which costs two forwards a block and gives the very
same bits, while activations would take many times the model's room.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from minifloat.calibrate import durable
from minifloat.calibrate.draft import Draft
from minifloat.errors import UserError
from minifloat.layers import QLayer
from minifloat.shards import Entry, entries_of
from minifloat.spec import LayerSpec
from minifloat.substitute import packed_like

_SETTINGS = "settings.json"


class Journal:
    """The folder of one unfinished run.

    Args:
        folder: made if it is not there.
        settings: all that decides the result, as JSON; a journal belongs to one set of them.
        resume: go on with what the folder holds.
        every: seconds between two states of a block that is being worked on.

    Raises:
        UserError: to resume with other settings, or to start anew over finished blocks of the same.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], *, resume: bool, every: float = 60.0
    ) -> None:
        self._folder, self._every = folder, every
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

    def keep(
        self, names: Sequence[str], model: nn.Module, outcomes: Sequence[dict[str, dict[str, Any]]]
    ) -> None:
        """Write finished blocks down: packed layers' specs, tensors, what is known of them.

        The first is written last, so that it stands for them all.
        """
        for name, outcome in reversed(list(zip(names, outcomes, strict=True))):
            layers = {}
            for layer_name in outcome:
                layer = model.get_submodule(layer_name)
                assert isinstance(layer, QLayer)
                layers[layer_name] = {"spec": layer.spec.to_json(), "rank": layer.rank}
            block = model.get_submodule(name)
            state = {key: value.clone() for key, value in block.state_dict().items()}
            try:
                durable.write(self._file(name), state, {"layers": layers, "outcome": outcome})
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot keep the finished block {name} in {self._folder} ({error}); once there "
                    "is room, --resume goes on from the blocks before it"
                ) from error
        self.draft(names[0]).drop()

    def draft(self, name: str) -> Draft:
        """What is kept of the window that begins with the block `name` while it is worked on."""
        return Draft(self._folder / f"{name}.draft", self._every)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def tensors(self) -> dict[str, Entry]:
        """Where every tensor of the finished blocks lies, by its name in the model."""
        return {
            f"{file.stem}.{key}": entry
            for file in self._folder.glob("*.safetensors")
            for key, entry in entries_of(file)
        }

    def restore(
        self, names: Sequence[str], model: nn.Module
    ) -> list[dict[str, dict[str, Any]]] | None:
        """Put blocks' packed layers in place and return their outcomes; None unless all were finished.

        A file that a failing disk has damaged counts as not finished.
        """
        found = []
        for name in names:
            kept = durable.read(self._file(name))
            if kept is None:
                return None
            found.append(kept)
        for name, (tensors, notes) in zip(names, found, strict=True):
            for layer_name, about in notes["layers"].items():
                old = model.get_submodule(layer_name)
                layer = packed_like(old, LayerSpec.from_json(about["spec"]), about["rank"])
                model.set_submodule(layer_name, layer)
            model.get_submodule(name).load_state_dict(tensors)
        return [notes["outcome"] for _, notes in found]


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
