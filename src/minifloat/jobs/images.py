"""Diffusion pipelines: the sampler's own trajectories calibrate, images of the same noise judge."""

import time
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from minifloat.calibrate.trajectories import record
from minifloat.evaluate.images import collapsed, compare_images
from minifloat.export.native import save
from minifloat.jobs.job import Job, Task
from minifloat.jobs.unfinished import Collapsed, open_journal
from minifloat.layers import weights_held
from minifloat.method import quantize
from minifloat.models.pipeline import denoiser, open_pipeline, requests, sample, save_others
from minifloat.models.prompts import Prompts, read_prompts
from minifloat.pictures import write_strips
from minifloat.plan import Plan

CALLS, EVALUATED = 16, 16
PROMPTS = 16  # that calibrate; more if more calls are asked for
JUDGED = 1 << 20  # seed of the noise that images are judged on, in every job the same


def run_images(task: Task) -> dict[str, Any]:
    """Quantize the denoiser, save the pipeline into the task's folder and judge; returns the report."""
    job, team, folder = task.job, task.team, task.folder
    calls = CALLS if job.samples is None else job.samples
    evaluated = (EVALUATED if job.evaluate is None else job.evaluate) if team.rank == 0 else 0
    pipe = open_pipeline(job.model, job.device)
    name, network = denoiser(pipe)
    asked, judged = _requests(job, pipe, max(PROMPTS, -(-4 * calls // job.steps)), evaluated)

    def images(prompts: Prompts, seed: int) -> Tensor:
        return sample(pipe, prompts, seed=seed, steps=job.steps, guidance=job.guidance)

    expected = images(judged, JUDGED) if evaluated else None
    started = time.perf_counter()
    batches = record(network, lambda: images(asked, 1000 * job.seed), limit=calls, seed=job.seed)
    batches = list(team.share(batches))
    seconds = time.perf_counter() - started
    settings = {"calls": calls, "steps": job.steps, "guidance": job.guidance}
    journal = open_journal(task, network, prompts=asked.captions, **settings)
    where: Any = {"journal": journal, "team": team, "progress": task.progress}
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
    }
    report["seconds"]["trajectories"] = seconds
    (folder / name).mkdir()
    report["size"]["after"] = save(network, Plan.from_json(report["plan"]), folder / name)
    save_others(pipe, name, folder)
    if expected is not None:
        started = time.perf_counter()
        with weights_held(network):
            found = images(judged, JUDGED)
        report["seconds"]["evaluate"] = time.perf_counter() - started
        if collapsed(expected, found):
            raise Collapsed(
                "the quantized pipeline has collapsed: its images are no nearer to the "
                "full-precision ones than those are to each other; nothing was saved. Use more "
                "bits, smaller groups or a plan that keeps the worst layers"
            )
        report["metrics"] = compare_images(expected, found)
        report["pictures"] = write_strips(expected, found, judged.captions, folder)
    return report


def _requests(job: Job, pipe: Any, count: int, evaluated: int) -> tuple[Prompts, Prompts]:
    """Prompts that calibrate and others that judge: of a file, of the pipeline's folder, packaged."""
    own = Path(job.model).expanduser()
    if job.data is None and (own / "prompts.safetensors").is_file():
        first = read_prompts(own / "prompts.safetensors")
        second = read_prompts(own / "heldout.safetensors").spread(evaluated)
        return requests(pipe, first, count, 0), requests(pipe, second, evaluated, JUDGED)
    if job.data is not None:
        prompts = read_prompts(job.data)
    else:
        with resources.as_file(resources.files("minifloat") / "data" / "prompts.txt") as path:
            prompts = read_prompts(path)
    total = requests(pipe, prompts, count + evaluated, 0)
    return total.rows(0, count), total.rows(count, count + evaluated)
