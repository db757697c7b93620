"""Where the blocks of an unfinished job are kept, and which settings they belong to."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minifloat.calibrate.journal import Journal, fingerprint
from minifloat.errors import UserError
from minifloat.jobs.job import Task


class Collapsed(UserError):
    """The result is no good, so going on with the run would be of no use."""


def unfinished(out: Path) -> Path:
    """The folder of the finished blocks of a run into `out`."""
    return out.with_name(f".{out.name}.unfinished")


def open_journal(task: Task, model: nn.Module, **settings: Any) -> Journal | None:
    """The journal of a task; `settings` are what its family adds, with defaults filled in.

    The first process of a team keeps it. The others look into it when a run goes on, so it must lie
    where all of them see it.
    """
    job = task.job
    if task.team.rank and not job.resume:
        return None
    known = {
        "minifloat": version("minifloat"),
        "torch": torch.__version__,
        "processes": task.team.size,
        "model": fingerprint(model),
        "method": job.method,
        "method settings": dict(job.settings),
        "plan": task.plan.to_json(),
        "data": _digest(job.data),
        "seed": job.seed,
        "device": job.device,
    }
    return Journal(unfinished(job.out), known | settings, resume=job.resume)


def _digest(data: Path | None) -> str | None:
    """Of a file of text or prompts; what a folder of pictures holds is in its family's settings."""
    if data is None or data.is_dir():
        return None
    return hashlib.sha256(data.read_bytes()).hexdigest()
