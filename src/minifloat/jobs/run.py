"""The driver of a job: by the kind of model, and all of a folder or none of it."""

import shutil
from dataclasses import replace
from typing import Any

from minifloat.card import write_card
from minifloat.export.native import whole_or_nothing
from minifloat.jobs.images import run_images
from minifloat.jobs.job import Job, Say
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

    Raises:
        UserError: for any mistake in the job, and for a result that has collapsed.
    """
    name, job = job.model, replace(job, model=resolve(job.model))
    pictures = is_pipeline(job.model)
    method = build(job.method or _USUAL[pictures], dict(job.settings))
    plan = method.plan if job.plan is None else Plan.read(job.plan)
    with whole_or_nothing(job.out) as folder:
        work = run_images if pictures else run_text
        try:
            report = work(job, method, plan, folder, progress, say)
        except Collapsed:
            shutil.rmtree(unfinished(job.out), ignore_errors=True)
            raise
        report |= {"model": name, "seed": job.seed}
        report["settings"] |= dict(job.settings)
        write_report(report, folder)
        write_card(report, folder, pipeline=pictures)
    shutil.rmtree(unfinished(job.out), ignore_errors=True)
    return report
