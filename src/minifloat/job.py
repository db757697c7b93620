"""The main job: a model in, a packed checkpoint and its report out."""

import copy
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minifloat.errors import UserError
from minifloat.evaluate.compare import compare
from minifloat.export.native import save, whole_or_nothing
from minifloat.layers import weights_held
from minifloat.method import Progress, quantize
from minifloat.methods import build
from minifloat.models.load import context, load_model, read_tokens, sample_windows
from minifloat.plan import Plan
from minifloat.report import write_report

# A quantized model whose perplexity is this many times the full-precision one has collapsed.
COLLAPSE = 2.0


@dataclass(frozen=True)
class Job:
    """What `minifloat quantize` was asked for.

    Attributes:
        model: folder, hub name or GGUF file.
        out: folder for the checkpoint and the report.
        method: name of a published system.
        settings: its hyper-parameters as text.
        data: calibration text, or None for the packaged one.
        plan: a plan in place of the method's.
        samples, length: calibration windows and tokens in each, at most the model's context.
        evaluate: held-out tokens to judge the result on; 0 skips the judging.
    """

    model: str
    out: Path
    method: str = "zeroquant-fp"
    settings: tuple[tuple[str, str], ...] = ()
    data: Path | None = None
    plan: Path | None = None
    seed: int = 0
    device: str = "cpu"
    samples: int = 32
    length: int = 512
    evaluate: int = 4096


def run(job: Job, progress: Progress | None = None) -> dict[str, Any]:
    """Quantize, judge, save and report; returns the report.

    Raises:
        UserError: for any mistake in the job, and for a result that has collapsed.
    """
    method = build(job.method, dict(job.settings))
    plan = method.plan if job.plan is None else Plan.read(job.plan)
    with whole_or_nothing(job.out) as folder:
        model, tokenizer = load_model(job.model, device=job.device)
        model.eval()
        tokens = read_tokens(tokenizer, job.data, default="calibration")
        length = context(model, job.length)
        windows = sample_windows(tokens, job.samples, length, job.seed).to(job.device)
        held_out = read_tokens(tokenizer, None, default="heldout")[: job.evaluate]
        reference = copy.deepcopy(model) if job.evaluate else None
        batches = list(torch.split(windows, max(1, 4096 // length)))
        report = quantize(model, method, batches, plan=plan, progress=progress)
        report |= {"model": job.model, "seed": job.seed, "settings": _settings(job, length)}
        report["size"]["after"] = save(model, Plan.from_json(report["plan"]), folder)
        tokenizer.save_pretrained(str(folder))
        if reference is not None:
            started = time.perf_counter()
            with (
                weights_held(model),
                torch.inference_mode() if job.device == "cpu" else nullcontext(),
            ):
                report["metrics"] = compare(
                    reference, model, held_out.to(job.device), window=length
                )
            report["seconds"]["evaluate"] = time.perf_counter() - started
            _refuse_collapse(report)
        write_report(report, folder)
    return report


def _settings(job: Job, length: int) -> dict[str, Any]:
    return {
        "samples": job.samples,
        "length": length,
        "data": "packaged State of the Union addresses to 2000"
        if job.data is None
        else str(job.data),
        "evaluated on": "packaged State of the Union addresses of 2009-2016",
        "evaluated tokens": job.evaluate,
        **dict(job.settings),
    }


def _refuse_collapse(report: dict[str, Any]) -> None:
    row = next(row for row in report["metrics"] if row["name"] == "perplexity")
    before, after = row["full_precision"], row["quantized"]
    if not after < COLLAPSE * before:
        raise UserError(
            f"the quantized model has collapsed: perplexity {after:.4g} against {before:.4g}; "
            "nothing was saved. Use more bits, smaller groups or a plan that keeps the worst layers"
        )
