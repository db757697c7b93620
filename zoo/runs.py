"""What a training run keeps on disk: one checkpoint that survives a kill, and one log.

Why this file exists: every model of the zoo must resume bit for bit, whatever its loss and data are.
A checkpoint is one safetensors file of weights and moments under the names of their parameters;
progress and recipe ride in it as JSON, so that they cannot disagree with the tensors.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0
    seconds: float = 0.0


class Saved(NamedTuple):
    """A checkpoint."""

    progress: Progress
    recipe: dict[str, Any]
    tensors: dict[str, Tensor]


def begin(out: Path, resume: bool) -> None:
    """Make the folder of a new run, and never write over an old one."""
    if resume:
        return
    if (out / CHECKPOINT).exists():
        raise FileExistsError(f"{out} holds a run already: pass --resume, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).write_text("", encoding="utf-8")


def state(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The weights, and the moments once there are some."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, moment in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = moment
    return tensors


def restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """Undo `state` in place; parameters that the loss does not reach have no moments."""
    for name, parameter in model.named_parameters():
        parameter.data.copy_(tensors[f"model/{name}"])
        if f"step/{name}" in tensors:
            moments = {key: tensors[f"{key}/{name}"].to(parameter.device) for key in MOMENTS}
            optimizer.state[parameter] = moments


def save(out: Path, tensors: dict[str, Tensor], progress: Progress, recipe: dict[str, Any]) -> None:
    """Replace the checkpoint in one move: a stop at any moment leaves the old or the new one."""
    metadata = {"progress": json.dumps(progress._asdict()), "recipe": json.dumps(recipe)}
    partial = out / (CHECKPOINT + ".partial")
    save_file({name: x.cpu().contiguous() for name, x in tensors.items()}, partial, metadata)
    partial.replace(out / CHECKPOINT)


def load(out: Path, recipe: dict[str, Any], may_differ: tuple[str, ...] = ()) -> Saved:
    """The checkpoint of a run of this very recipe, but for what may differ."""
    with safe_open(out / CHECKPOINT, framework="pt") as file:
        metadata = file.metadata()
        saved = json.loads(metadata["recipe"])
        changed = [k for k, v in recipe.items() if saved.get(k) != v and k not in may_differ]
        if changed:
            raise ValueError(f"{out / CHECKPOINT} was made with another {', '.join(changed)}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Saved(Progress(**json.loads(metadata["progress"])), saved, tensors)


def rewind_log(out: Path, step: int) -> None:
    """Drop the lines of steps that a stopped run took after its last checkpoint."""
    lines = (out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    (out / LOG).write_text("".join(kept), encoding="utf-8")


def write_log(out: Path, progress: Progress, losses: list[float], extra: dict[str, float]) -> None:
    """Append one JSON line: the mean loss since the last line and, now and then, validation."""
    mean = round(sum(losses) / len(losses), 5)
    line = {"step": progress.step, "seconds": round(progress.seconds, 1), "loss": mean} | extra
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
