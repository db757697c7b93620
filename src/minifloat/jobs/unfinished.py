"""Where the blocks of an unfinished job are kept, and which settings they belong to."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minifloat.calibrate.journal import Journal, fingerprint
from minifloat.errors import UserError
from minifloat.jobs.job import Job
from minifloat.plan import Plan


class Collapsed(UserError):
    """The result is no good, so going on with the run would be of no use."""


def unfinished(out: Path) -> Path:
    """The folder of the finished blocks of a run into `out`."""
    return out.with_name(f".{out.name}.unfinished")


def open_journal(job: Job, plan: Plan, model: nn.Module, **settings: Any) -> Journal:
    """The journal of a job; `settings` are what its family adds, with defaults filled in."""
    known = {
        "minifloat": version("minifloat"),
        "torch": torch.__version__,
        "model": fingerprint(model),
        "method": job.method,
        "method settings": dict(job.settings),
        "plan": plan.to_json(),
        "data": job.data and hashlib.sha256(job.data.read_bytes()).hexdigest(),
        "seed": job.seed,
        "device": job.device,
    }
    return Journal(unfinished(job.out), known | settings, resume=job.resume)
