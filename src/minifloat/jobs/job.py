"""What `minifloat quantize` was asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]  # shows the user a line


@dataclass(frozen=True)
class Job:
    """One run of the command.

    Attributes:
        model: folder, hub name or GGUF file of a language model; folder or hub name of a pipeline.
        out: folder for the checkpoint and the report.
        method: name of a published system; None for the family's usual one.
        settings: its hyper-parameters as text.
        data: calibration text or prompts, or None for what is packaged.
        plan: a plan in place of the method's.
        samples: calibration windows, or calls of a denoiser; None for the family's default.
        length: tokens in a window, at most the model's context.
        evaluate: held-out tokens or images to judge the result on; 0 skips the judging, None is the
            family's default.
        steps: sampler steps of a diffusion pipeline.
        guidance: its classifier-free guidance scale; None leaves the pipeline's own.
        resume: go on with a run into `out` that was stopped.
        memory: bytes that the run may take; a model that is too large for it is loaded block by
            block. None for no limit.
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
