"""Language models: windows of text calibrate, perplexity judges."""

import copy
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from minifloat.evaluate.compare import compare
from minifloat.export.native import save
from minifloat.jobs.job import Job
from minifloat.jobs.unfinished import Collapsed, open_journal
from minifloat.layers import weights_held
from minifloat.method import Method, Progress, quantize
from minifloat.models.load import context, load_model, read_tokens, sample_windows
from minifloat.plan import Plan

# A quantized model whose perplexity is this many times the full-precision one has collapsed.
COLLAPSE = 2.0
SAMPLES, EVALUATED = 32, 4096


def run_text(
    job: Job, method: Method, plan: Plan, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """Quantize, save into `folder` and judge; returns the report."""
    samples = SAMPLES if job.samples is None else job.samples
    evaluated = EVALUATED if job.evaluate is None else job.evaluate
    model, tokenizer = load_model(job.model, device=job.device)
    model.eval()
    tokens = read_tokens(tokenizer, job.data, default="calibration")
    length = context(model, job.length)
    windows = sample_windows(tokens, samples, length, job.seed).to(job.device)
    held_out = read_tokens(tokenizer, None, default="heldout")[:evaluated]
    reference = copy.deepcopy(model) if evaluated else None
    batches = list(torch.split(windows, max(1, 4096 // length)))
    journal = open_journal(job, plan, model, samples=samples, length=length)
    report = quantize(model, method, batches, plan=plan, progress=progress, journal=journal)
    report["settings"] = {
        "samples": samples,
        "length": length,
        "data": "packaged State of the Union addresses to 2000"
        if job.data is None
        else str(job.data),
        "evaluated on": "packaged State of the Union addresses of 2009-2016",
        "evaluated tokens": evaluated,
    }
    report["size"]["after"] = save(model, Plan.from_json(report["plan"]), folder)
    tokenizer.save_pretrained(str(folder))
    if reference is not None:
        started = time.perf_counter()
        with weights_held(model), torch.inference_mode() if job.device == "cpu" else nullcontext():
            report["metrics"] = compare(reference, model, held_out.to(job.device), window=length)
        report["seconds"]["evaluate"] = time.perf_counter() - started
        _refuse_collapse(report)
    return report


def _refuse_collapse(report: dict[str, Any]) -> None:
    row = next(row for row in report["metrics"] if row["name"] == "perplexity")
    before, after = row["full_precision"], row["quantized"]
    if not after < COLLAPSE * before:
        raise Collapsed(
            f"the quantized model has collapsed: perplexity {after:.4g} against {before:.4g}; "
            "nothing was saved. Use more bits, smaller groups or a plan that keeps the worst layers"
        )
