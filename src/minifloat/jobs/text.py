"""Language models: windows of text calibrate, perplexity judges."""

import copy
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifloat.evaluate.compare import compare
from minifloat.export.native import save
from minifloat.jobs.job import Job, Say
from minifloat.jobs.memory import estimate
from minifloat.jobs.unfinished import Collapsed, open_journal
from minifloat.layers import weights_held
from minifloat.memory import resident
from minifloat.method import Method, Progress, quantize
from minifloat.models.families import adapter_for
from minifloat.models.lazy import Lazy, load_lazily
from minifloat.models.load import context, load_model, read_tokens, sample_windows
from minifloat.plan import Plan
from minifloat.shards import entries

# A quantized model whose perplexity is this many times the full-precision one has collapsed.
COLLAPSE = 2.0
SAMPLES, EVALUATED = 32, 4096
_USUAL_BUDGET = 4 << 30
_TOGETHER = 8  # windows at once, where every batch reads the whole model from disk


def run_text(
    job: Job, method: Method, plan: Plan, folder: Path, progress: Progress | None, say: Say
) -> dict[str, Any]:
    """Quantize, save into `folder` and judge; returns the report."""
    samples = SAMPLES if job.samples is None else job.samples
    evaluated = EVALUATED if job.evaluate is None else job.evaluate
    model, tokenizer, lazy = _load(job)
    length = context(model, job.length)
    tokens = read_tokens(tokenizer, job.data, default="calibration")
    windows = sample_windows(tokens, samples, length, job.seed).to(job.device)
    held_out = read_tokens(tokenizer, None, default="heldout")[:evaluated].to(job.device)
    batches = list(torch.split(windows, max(1, 4096 // length)))
    budget = _budget(job, model, lazy, batches[0].numel(), say)
    reference = copy.deepcopy(model) if evaluated and lazy is None else None
    files = None if lazy is None else lazy.stamp()
    journal = open_journal(job, plan, model, samples=samples, length=length, files=files)
    where: Any = {"journal": journal, "weights": lazy, "budget": budget}
    report = quantize(model, method, batches, plan=plan, progress=progress, **where)
    report["settings"] = _settings(job, samples, length, evaluated)
    elsewhere = None if lazy is None else journal.tensors()
    report["size"]["after"] = save(model, Plan.from_json(report["plan"]), folder, elsewhere)
    tokenizer.save_pretrained(str(folder))
    if evaluated:
        started = time.perf_counter()
        report["metrics"] = (
            _judge_lazily(job, folder, held_out, length)
            if reference is None
            else _judge(reference, model, held_out, length)
        )
        report["seconds"]["evaluate"] = time.perf_counter() - started
        _refuse_collapse(report)
    return report


def _budget(job: Job, model: Any, lazy: Lazy | None, rows: int, say: Say) -> int:
    """Bytes for activations between blocks; where memory is limited, what the rest leaves of it."""
    if lazy is None or job.memory is None:
        return _USUAL_BUDGET
    found = estimate(model, adapter_for(model), lazy, rows)
    left = found.activations(job.memory)
    say(f"block by block: {found}; {left / 2**30:.2f} GiB for activations")
    return left


def _load(job: Job) -> tuple[Any, Any, Lazy | None]:
    """The model, whole where memory is not limited or is enough for two copies and the work."""
    if job.memory is None or not Path(job.model).is_dir():
        return *load_model(job.model, device=job.device), None
    size = sum(entry.bytes for entry in entries(Path(job.model)).values())
    if resident() + 4 * size < job.memory:
        return *load_model(job.model, device=job.device), None
    return load_lazily(job.model)


def _judge(reference: Any, model: Any, tokens: Tensor, length: int) -> list[dict[str, Any]]:
    with weights_held(model), torch.inference_mode() if tokens.is_cpu else nullcontext():
        return compare(reference, model, tokens, window=length)


def _judge_lazily(job: Job, folder: Path, tokens: Tensor, length: int) -> list[dict[str, Any]]:
    """The saved model against the original, whose blocks come and go."""
    original, _, lazy = load_lazily(job.model)
    model, _ = load_model(str(folder))
    with lazy.coming_and_going(), torch.inference_mode():
        return compare(original, model, tokens, window=length, batch=_TOGETHER)


def _settings(job: Job, samples: int, length: int, evaluated: int) -> dict[str, Any]:
    return {
        "samples": samples,
        "length": length,
        "data": "packaged State of the Union addresses to 2000"
        if job.data is None
        else str(job.data),
        "evaluated on": "packaged State of the Union addresses of 2009-2016",
        "evaluated tokens": evaluated,
        "memory limit": job.memory,
    }


def _refuse_collapse(report: dict[str, Any]) -> None:
    row = next(row for row in report["metrics"] if row["name"] == "perplexity")
    before, after = row["full_precision"], row["quantized"]
    if not after < COLLAPSE * before:
        raise Collapsed(
            f"the quantized model has collapsed: perplexity {after:.4g} against {before:.4g}; "
            "nothing was saved. Use more bits, smaller groups or a plan that keeps the worst layers"
        )
