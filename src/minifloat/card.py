"""The model card of a finished folder: what was done, how good it is, how each engine loads it.

A hub shows `README.md`; its front matter is YAML that hubs index.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minifloat.errors import UserError
from minifloat.export.native_folder import open_native
from minifloat.export.pipeline import quantized_component
from minifloat.export.write import planned
from minifloat.report import summary_table

# What each reader is told of an exported folder; `verify` says which hardware and packages it needs.
_VLLM = "vLLM: vllm serve DIR2"
_SGLANG = "SGLang: python -m sglang.launch_server --model-path DIR2"
_TRANSFORMERS = "transformers: {}.from_pretrained(DIR2)"
_DIFFUSERS = "diffusers: DiffusionPipeline.from_pretrained(DIR2"
Told = dict[str, tuple[str, ...]]
_READERS: Told = {
    "compressed-tensors": (_VLLM, _SGLANG, f"{_TRANSFORMERS}, with compressed-tensors"),
    "modelopt": (_VLLM, _SGLANG),
    "quark": (_VLLM, f"{_TRANSFORMERS}, with amd-quark"),
    "fp8": (_VLLM, _SGLANG, _TRANSFORMERS),
    "humming": (f"{_VLLM}, with humming-kernels",),
    "sdnq": (f"{_TRANSFORMERS}, after import sdnq",),
    "torchao": (f"{_TRANSFORMERS}, with torchao",),
}
_PIPELINE_READERS: Told = {
    "sdnq": (f"{_DIFFUSERS}), after import sdnq",),
    "torchao": (f"{_DIFFUSERS}, torch_dtype=...) in this model's own dtype, with torchao",),
}


def write_card(report: dict[str, Any], folder: Path, *, pipeline: bool) -> None:
    """Write `README.md` into the folder of a run."""
    load = _PIPELINE if pipeline else _model(*report["loads"])
    parts = [
        _front(report, "diffusers" if pipeline else "transformers"),
        f"# {Path(str(report['model'])).name}, quantized by {report['method']}",
        _facts(report),
        _table(("", "full precision", "quantized", "change"), summary_table(report)),
        "## Plan",
        _table(("tensors", "weight", "input", "bits a weight"), _specs(report)),
        f"## Loading\n\n{load}",
    ]
    checkpoint = quantized_component(folder) if pipeline else folder
    told = _PIPELINE_READERS if pipeline else _told(report["loads"][0])
    parts.append(_exports(checkpoint, told))
    parts.append(
        "`report.html` shows every layer; `report.json` holds the ledger of all parameters."
    )
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _front(report: dict[str, Any], library: str) -> str:
    """A name with a slash that is no path is a hub's, and can be linked as the base model."""
    model = str(report["model"])
    base = [f"base_model: {model}"] if model.count("/") == 1 and model[0] not in "./~" else []
    tags = ["tags:", "- minifloat", "- quantized", f"- {report['method']}"]
    return "\n".join(["---", f"library_name: {library}", *base, *tags, "---"])


def _facts(report: dict[str, Any]) -> str:
    paper = f" ({report['paper']})" if report.get("paper") else ""
    settings = ", ".join(f"{k} {_plain(v)}" for k, v in report["settings"].items() if v is not None)
    return (
        f"Made by minifloat {report['minifloat']} with {report['method']}{paper}, seed "
        f"{report['seed']}. Settings: {settings}."
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _specs(report: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """How many layers have each spec, with their mean bits, and what is kept."""
    groups: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in report["ledger"]:
        kind = (row["weight"] or "kept", row["input"] or "-")
        groups[kind].append(row["bits"])
    for (weight, x), bits in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield (str(len(bits)), weight, x, f"{sum(bits) / len(bits):.2f}")


def _told(model: str) -> Told:
    """What readers of a model are told, which transformers loads by this class."""
    return {name: tuple(line.format(model) for line in lines) for name, lines in _READERS.items()}


def _exports(folder: Path, readers: Told) -> str:
    """Which contracts hold this very checkpoint and what reads them, and why the others do not."""
    commands, reasons = [], []
    for name, told in readers.items():
        flags, reason = _flags(folder, name)
        if reason is None:
            commands.append(f"minifloat export DIR --to {name} --out DIR2{flags}")
            commands += [f"  # {line}" for line in told]
        else:
            reasons.append(f"- {reason}")
    block = ["```\n" + "\n".join(commands) + "\n```"] if commands else []
    refused = ["Refused:\n\n" + "\n".join(reasons)] if reasons else []
    return "\n\n".join(["## Other engines", *block, *refused])


def _flags(folder: Path, contract: str) -> tuple[str, str | None]:
    """What the export command needs beside the contract's name, and why it would refuse if so."""
    native, reason = open_native(folder), None
    for tried, flags in ((native, ""), (native.weights_only(), " --weights-only")):
        try:
            planned(tried, contract)
        except UserError as error:
            reason = str(error)
            continue
        return flags, None
    return "", reason


def _model(model: str, companion: str) -> str:
    """How to load a model and what goes with it: a tokenizer, or a processor of pictures too."""
    name = companion.removeprefix("Auto").lower()
    return f"""```python
import minifloat  # registers with transformers
from transformers import {model}, {companion}

model = {model}.from_pretrained(DIR)
{name} = {companion}.from_pretrained(DIR)
```"""


_PIPELINE = """```python
import minifloat  # registers with diffusers
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(DIR)
```"""
