"""The driver of a job: by the kind of model, and all of a folder or none of it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minifloat.calibrate.team import Team
from minifloat.card import write_card
from minifloat.errors import UserError
from minifloat.export.native import whole_or_nothing
from minifloat.jobs.images import run_images
from minifloat.jobs.job import Job, Say, Task
from minifloat.jobs.text import run_text
from minifloat.jobs.unfinished import Collapsed, unfinished
from minifloat.method import Progress
from minifloat.methods import build
from minifloat.models.pipeline import is_pipeline
from minifloat.models.zoo import resolve
from minifloat.plan import Plan
from minifloat.report import write_report

_USUAL = {False: "zeroquant-fp", True: "fp-diffusion"}  # methods of text and of pictures


def run(job: Job, progress: Progress | None = None, say: Say = print) -> dict[str, Any]:
    """Quantize, judge, save and report; returns the report.

    Started by torchrun, every process calibrates on its share, and the first one does the rest.

    Raises:
        UserError: for any mistake in the job, and for a result that has collapsed.
    """
    name, job = job.model, replace(job, model=resolve(job.model))
    pictures = is_pipeline(job.model)
    method = build(job.method or _USUAL[pictures], dict(job.settings))
    plan = method.plan if job.plan is None else Plan.read(job.plan)
    team = Team.join(job.device)
    work = run_images if pictures else run_text
    if team.rank:
        report = work(Task(job, method, plan, job.out, None, lambda line: None, team))
    else:
        with whole_or_nothing(job.out) as folder:
            report = _whole(work, Task(job, method, plan, folder, progress, say, team))
            report |= {"model": name, "seed": job.seed}
            report["settings"] |= dict(job.settings)
            write_report(report, folder)
            write_card(report, folder, pipeline=pictures)
        shutil.rmtree(unfinished(job.out), ignore_errors=True)
    team.leave()
    return report


def _whole(work: Callable[[Task], dict[str, Any]], task: Task) -> dict[str, Any]:
    """The report of a task. Of one that fails, finished blocks are kept, unless they are of no use."""
    folder = unfinished(task.job.out)
    try:
        return work(task)
    except UserError as error:
        if isinstance(error, Collapsed) or not any(folder.glob("*.safetensors")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
