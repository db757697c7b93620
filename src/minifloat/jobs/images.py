"""Diffusion pipelines: the sampler's own trajectories calibrate, images of the same noise judge."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minifloat.calibrate.trajectories import record
from minifloat.evaluate.images import collapsed, compare_images
from minifloat.evaluate.steps import Trajectory, follow
from minifloat.export.native import save
from minifloat.jobs.job import Job, Task
from minifloat.jobs.memory import budget
from minifloat.jobs.unfinished import Collapsed, open_journal
from minifloat.layers import weights_held
from minifloat.memory import resident
from minifloat.method import quantize
from minifloat.models.adapter import Adapter
from minifloat.models.lazy import Lazy
from minifloat.models.lazy_denoiser import open_lazily
from minifloat.models.pipeline import (
    BATCH,
    denoiser,
    denoiser_class,
    open_pipeline,
    requests,
    sample,
    save_others,
)
from minifloat.models.prompts import Prompts, packaged, read_prompts
from minifloat.pictures import write_strips
from minifloat.plan import Plan
from minifloat.shards import stored_bytes

CALLS, EVALUATED = 16, 16
PROMPTS = 16  # that calibrate; more if more calls are asked for
JUDGED = 1 << 20  # seed of the noise that images are judged on, in every job the same


def run_images(task: Task) -> dict[str, Any]:
    """Quantize the denoiser, save the pipeline into the task's folder and judge; returns the report."""
    job, team, folder = task.job, task.team, task.folder
    calls = CALLS if job.samples is None else job.samples
    evaluated = (EVALUATED if job.evaluate is None else job.evaluate) if team.rank == 0 else 0
    pipe, adapter, lazy = _open(job)
    name, network = denoiser(pipe)
    prompts = max(1 if lazy else PROMPTS, -(-4 * calls // job.steps))
    asked, judged = _requests(job, pipe, prompts, evaluated)

    def images(prompts: Prompts, seed: int) -> Tensor:
        with lazy.coming_and_going() if lazy else nullcontext():
            return _images(job, pipe, prompts, seed)

    expected = trajectory = None
    if evaluated:
        expected, trajectory = judged_images(network, judged, images)
    started = time.perf_counter()
    batches = record(network, lambda: images(asked, 1000 * job.seed), limit=calls, seed=job.seed)
    batches = list(team.share(batches))
    seconds = time.perf_counter() - started
    settings = {"calls": calls, "steps": job.steps, "guidance": job.guidance}
    files = None if lazy is None else lazy.stamp()
    journal = open_journal(task, network, prompts=asked.captions, files=files, **settings)
    where: Any = {"journal": journal, "team": team, "progress": task.progress, "weights": lazy}
    if lazy is not None and adapter is not None:
        tokens = max(_positions(batch) for batch in batches)
        where |= {"adapter": adapter, "budget": budget(task, network, adapter, lazy, tokens)}
    where |= {"unseen": job.unseen}
    report = quantize(network, task.method, batches, plan=task.plan, **where)
    if team.rank:
        return report
    report["settings"] = {
        "denoiser": name,
        "sampler": type(pipe.scheduler).__name__,
        "sampler steps": job.steps,
        "guidance": job.guidance,
        "calibration prompts": len(asked),
        "calls of the denoiser": calls,
        "evaluated images": evaluated,
        "memory limit": job.memory,
    }
    report["seconds"]["trajectories"] = seconds
    (folder / name).mkdir()
    elsewhere = journal.tensors() if lazy is not None and journal is not None else None
    done = Plan.from_json(report["plan"])
    report["size"]["after"] = save(network, done, folder / name, elsewhere)
    save_others(pipe, name, folder)
    if expected is not None and trajectory is not None:
        started = time.perf_counter()
        if lazy is not None:  # whose blocks are on disk alone by now
            pipe = open_pipeline(str(folder))
        with weights_held(network) if lazy is None else nullcontext():
            found = _images(job, pipe, judged, JUDGED)
            report["step_sqnr"] = trajectory.sqnr(denoiser(pipe)[1])
        report["seconds"]["evaluate"] = time.perf_counter() - started
        report["metrics"] = _judged(expected, found)
        report["pictures"] = write_strips(expected, found, judged.captions, folder)
    return report


def judged_images(
    network: nn.Module, judged: Prompts, images: Callable[[Prompts, int], Tensor]
) -> tuple[Tensor, Trajectory]:
    """Full precision's images of the judged prompts, and what the first few asked of the denoiser."""
    some = min(BATCH, len(judged))
    first, trajectory = follow(network, lambda: images(judged.rows(0, some), JUDGED))
    rest = [images(judged.rows(some, len(judged)), JUDGED + some)] if len(judged) > some else []
    return torch.cat([first, *rest]), trajectory


def _judged(expected: Tensor, found: Tensor) -> list[dict[str, Any]]:
    if collapsed(expected, found):
        raise Collapsed(
            "the quantized pipeline has collapsed: its images are no nearer to the full-precision "
            "ones than those are to each other; nothing was saved. Use more bits, smaller groups or "
            "a plan that keeps the worst layers"
        )
    return compare_images(expected, found)


def _open(job: Job) -> tuple[Any, Adapter | None, Lazy | None]:
    """The pipeline; its denoiser's blocks stay in their files where memory does not hold them twice."""
    folder = Path(job.model).expanduser()
    if job.memory is not None and folder.is_dir():
        name, _ = denoiser_class(folder)
        if resident() + 4 * stored_bytes(folder / name) > job.memory:
            return open_lazily(job.model)
    return open_pipeline(job.model, job.device), None, None


def _images(job: Job, pipe: Any, prompts: Prompts, seed: int) -> Tensor:
    return sample(pipe, prompts, seed=seed, steps=job.steps, guidance=job.guidance)


def _positions(batch: dict[str, Any]) -> int:
    """Tokens or pixels of a call, at most: its channels may be the second dimension or the last."""
    leaves = [x for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim > 1]
    return max(x.numel() // min(x.shape[1], x.shape[-1]) for x in leaves)


def _requests(job: Job, pipe: Any, count: int, evaluated: int) -> tuple[Prompts, Prompts]:
    """Prompts that calibrate and others that judge: of a file, of the pipeline's folder, packaged."""
    own = Path(job.model).expanduser()
    if job.data is None and (own / "prompts.safetensors").is_file():
        # A sampler of few steps takes more prompts than a folder holds.
        first = read_prompts(own / "prompts.safetensors").cycled(count)
        second = read_prompts(own / "heldout.safetensors").spread(evaluated)
        return requests(pipe, first, count, 0), requests(pipe, second, evaluated, JUDGED)
    prompts = packaged() if job.data is None else read_prompts(job.data)
    total = requests(pipe, prompts, count + evaluated, 0)
    return total.rows(0, count), total.rows(count, count + evaluated)
