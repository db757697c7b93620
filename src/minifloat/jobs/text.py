"""Language models, with or without eyes: text or pictures calibrate, perplexity judges."""

import copy
import time
from pathlib import Path
from typing import Any

import torch

from minifloat.errors import UserError
from minifloat.export.native import save
from minifloat.jobs.job import Job, Task
from minifloat.jobs.material import Judge, from_pairs, from_text, text_adapter
from minifloat.jobs.memory import budget
from minifloat.jobs.unfinished import Collapsed, open_journal
from minifloat.layers import weights_held
from minifloat.memory import resident
from minifloat.method import quantize
from minifloat.models.classes import auto_class
from minifloat.models.experts import open_planned
from minifloat.models.families import adapter_for
from minifloat.models.lazy import Lazy, load_lazily
from minifloat.models.load import load_model
from minifloat.models.pairs import is_pairs, load_processor
from minifloat.models.vlm import VLMAdapter
from minifloat.plan import Plan
from minifloat.shards import stored_bytes

# A quantized model whose perplexity is this many times the full-precision one has collapsed.
COLLAPSE = 2.0
_AT_ONCE = 2  # windows that are judged together
_TOGETHER = 8  # the same where every batch reads the whole model from disk


def run_text(task: Task) -> dict[str, Any]:
    """Quantize, save into the task's folder and judge; returns the report."""
    job, team = task.job, task.team
    model, tokenizer, lazy = _load(task)
    if is_pairs(job.data):
        companion = load_processor(job.model)
        material = from_pairs(task, model, companion)
    else:
        companion = _companion(task, model, tokenizer)
        material = from_text(task, model, tokenizer)
    reference = copy.deepcopy(model) if material.judge and lazy is None else None
    files = None if lazy is None else lazy.stamp()
    journal = open_journal(task, model, files=files, **material.settings)
    where: Any = {"journal": journal, "weights": lazy, "team": team}
    if lazy is not None:
        where["budget"] = budget(task, model, material.adapter, lazy, material.tokens)
    what: Any = {"adapter": material.adapter, "apart": material.apart, "plan": task.plan}
    what |= {"progress": task.progress, "unseen": job.unseen}
    report = quantize(model, task.method, material.batches, **what, **where)
    if team.rank:
        return report
    report["settings"] = material.settings | {"memory limit": job.memory}
    report["loads"] = [auto_class(model.config).__name__, _auto_companion(companion)]
    elsewhere = journal.tensors() if lazy is not None and journal is not None else None
    report["size"]["after"] = save(model, Plan.from_json(report["plan"]), task.folder, elsewhere)
    companion.save_pretrained(str(task.folder))
    if material.judge:
        started = time.perf_counter()
        report["metrics"] = (
            _judge_lazily(job, task.folder, material.judge)
            if reference is None
            else _judge(reference, model, material.judge)
        )
        report["seconds"]["evaluate"] = time.perf_counter() - started
        _refuse_collapse(report)
    return report


def _companion(task: Task, model: Any, tokenizer: Any) -> Any:
    """What turns words into numbers and is saved beside the model: of one with eyes, its processor."""
    if not VLMAdapter.accepts(model):
        return tokenizer
    try:
        return load_processor(task.job.model)
    except UserError as error:
        task.say(f"the tokenizer is saved alone: {error}")
        return tokenizer


def _auto_companion(companion: Any) -> str:
    return "AutoProcessor" if hasattr(companion, "image_processor") else "AutoTokenizer"


def _load(task: Task) -> tuple[Any, Any, Lazy | None]:
    """The model with experts opened where the plan asks; by blocks where memory does not hold it."""
    if _is_too_large(task.job):
        return _load_lazily(task.job, task.plan)
    model, tokenizer = load_model(task.job.model, device=task.job.device)
    open_planned(model, task.plan)
    return model, tokenizer, None


def _is_too_large(job: Job) -> bool:
    """Whether memory is limited and not enough for two copies and the work."""
    if job.memory is None or not Path(job.model).is_dir():
        return False
    return resident() + 4 * stored_bytes(Path(job.model)) >= job.memory


def _load_lazily(job: Job, plan: Plan | None = None) -> tuple[Any, Any, Lazy]:
    return load_lazily(job.model, adapter_for if is_pairs(job.data) else text_adapter, plan)


def _judge(reference: Any, model: Any, judge: Judge) -> list[dict[str, Any]]:
    with weights_held(model):
        return judge(reference, model, _AT_ONCE)


def _judge_lazily(job: Job, folder: Path, judge: Judge) -> list[dict[str, Any]]:
    """The saved model against the original, whose blocks come and go."""
    original, _, lazy = _load_lazily(job)
    model, _ = load_model(str(folder))
    with lazy.coming_and_going(), torch.inference_mode():
        return judge(original, model, _TOGETHER)


def _refuse_collapse(report: dict[str, Any]) -> None:
    row = next(row for row in report["metrics"] if row["name"] == "perplexity")
    before, after = row["full_precision"], row["quantized"]
    if not after < COLLAPSE * before:
        raise Collapsed(
            f"the quantized model has collapsed: perplexity {after:.4g} against {before:.4g}; "
            "nothing was saved. Use more bits, smaller groups or a plan that keeps the worst layers"
        )
