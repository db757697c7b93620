"""What `minifloat quantize` was asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minifloat.calibrate.team import Team
from minifloat.method import Method, Progress
from minifloat.plan import Plan

Say = Callable[[str], None]  # shows the user a line


@dataclass(frozen=True)
class Job:
    """One run of the command.

    Attributes:
        model: folder, hub name or GGUF file of a language model, with or without eyes; folder or hub
            name of a pipeline.
        out: folder for the checkpoint and the report.
        method: name of a published system; None for the family's usual one.
        settings: its hyper-parameters as text.
        data: calibration text, prompts, or pictures with words (see `models/pairs.py`); None for
            what is packaged.
        plan: a plan in place of the method's.
        samples: calibration windows, pictures, or calls of a denoiser; None for the family's default.
        length: tokens in a window, at most the model's context.
        evaluate: held-out tokens, pictures or images to judge the result on; 0 skips the judging,
            None is the family's default.
        steps: sampler steps of a diffusion pipeline.
        guidance: its classifier-free guidance scale; None leaves the pipeline's own.
        resume: go on with a run into `out` that was stopped.
        memory: bytes that the run may take; a model that is too large for it is loaded block by
            block. None for no limit.
        unseen: accept experts that no calibration token reached.
    """

    model: str
    out: Path
    method: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    data: Path | None = None
    plan: Path | None = None
    seed: int = 0
    device: str = "cpu"
    samples: int | None = None
    length: int = 512
    evaluate: int | None = None
    steps: int = 20
    guidance: float | None = None
    resume: bool = False
    memory: int | None = None
    unseen: bool = False


@dataclass(frozen=True)
class Task:
    """A job with all that it asks for made ready, for the code of one family.

    Attributes:
        job: what was asked for.
        method: built with its settings.
        plan: the job's own or the method's.
        folder: to write the checkpoint into.
        progress: wraps the windows as they finish.
        say: shows a line.
        team: the processes that share the job; only the first one writes and judges.
    """

    job: Job
    method: Method
    plan: Plan
    folder: Path
    progress: Progress | None
    say: Say
    team: Team
