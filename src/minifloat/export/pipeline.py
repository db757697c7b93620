"""A whole pipeline of diffusers: the quantized component in another contract, the others as they are."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minifloat.errors import UserError
from minifloat.export.native import QUANT_METHOD, whole_or_nothing
from minifloat.export.native_folder import read_config
from minifloat.export.write import export

_OURS = ("report.json", "report.html", "README.md")


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers."""
    return (folder / "model_index.json").is_file()


def export_pipeline(source: Path, to: str, out: Path, **options: bool) -> dict[str, Any]:
    """Write a pipeline with its quantized component as `export` writes it; returns what that says.

    Raises:
        UserError: no component is a checkpoint of ours, or the contract cannot hold it.
    """
    name = quantized_component(source).name
    with whole_or_nothing(out) as partial:
        done = export(source / name, to, partial / name, **options)
        for path in sorted(source.iterdir()):
            if path.is_dir() and path.name != name:
                shutil.copytree(path, partial / path.name)
            elif path.is_file() and path.name not in _OURS:
                shutil.copyfile(path, partial / path.name)
        note = {"contract": to, "component": name, "minifloat": version("minifloat")}
        (partial / "export.json").write_text(json.dumps(note, indent=2) + "\n")
    return done


def quantized_component(source: Path) -> Path:
    """The folder of a pipeline's component that is a checkpoint of ours.

    Raises:
        UserError: there is none.
    """
    for path in sorted(source.iterdir()):
        if (path / "config.json").is_file():
            quantization = read_config(path).get("quantization_config") or {}
            if quantization.get("quant_method") == QUANT_METHOD:
                return path
    raise UserError(f"no component of the pipeline {source} is a minifloat checkpoint")
