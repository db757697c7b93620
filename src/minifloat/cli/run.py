"""quantize and demo: one job, with its progress on the screen."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minifloat.cli.screen import console, print_metrics, progress
from minifloat.errors import UserError

if TYPE_CHECKING:
    from minifloat.jobs.job import Job

Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")
]


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder or hub name (a model or a diffusers pipeline), a GGUF file, zoo:NAME."
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="See 'minifloat show methods'; else zeroquant-fp, for images fp-diffusion."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Calibration text; pictures (a folder with metadata.jsonl); or prompts: one a "
            "line, or .safetensors."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the packed checkpoint.")] = Path("quantized"),
    plan: Annotated[
        Path | None, typer.Option(help="A plan in JSON instead of the method's.")
    ] = None,
    setting: Setting = None,
    seed: Annotated[int, typer.Option(help="Seed of the calibration windows.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda ...")] = "cpu",
    samples: Annotated[
        int | None, typer.Option(help="Calibration windows, pictures, or calls of a denoiser.")
    ] = None,
    length: Annotated[
        int, typer.Option(help="Tokens in a window, at most the model's context.")
    ] = 512,
    evaluate: Annotated[
        int | None, typer.Option(help="Held-out tokens, pictures or images to judge on; 0: none.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampler steps of a diffusion pipeline.")] = 20,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of a diffusion pipeline.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run into --out that was stopped.")
    ] = False,
    memory: Annotated[
        str,
        typer.Option(help="Most that the run may take, such as 8GB; larger models go by blocks."),
    ] = "",
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Accept experts that no calibration token reached.")
    ] = False,
) -> None:
    """Quantize a model, judge the result and write a packed checkpoint with its report."""
    from minifloat.jobs.job import Job
    from minifloat.jobs.memory import bytes_of

    settings = _settings(setting or [])
    job = Job(model, out, method, settings, data, plan, seed, device, samples, length)
    job = replace(job, evaluate=evaluate, steps=steps, guidance=guidance, resume=resume)
    job = replace(job, unseen=unseen)
    _quantize(replace(job, memory=bytes_of(memory) if memory else None))


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the packed checkpoint.")] = Path(
        "minifloat-demo"
    ),
) -> None:
    """Quantize SmolLM2-135M to FP4 weights and FP8 activations and show that it is still good."""
    from minifloat.demo import demo_model
    from minifloat.jobs.job import Job

    console.print("SmolLM2-135M-Instruct: reading it takes a minute (GGUF, tokenizer).")
    _quantize(Job(str(demo_model()), out, samples=16))


def _settings(pairs: list[str]) -> tuple[tuple[str, str], ...]:
    settings = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, not {pair!r}")
        settings.append((key, value))
    return tuple(settings)


def _quantize(job: "Job") -> None:
    from minifloat.jobs.run import run
    from minifloat.report import human_bytes

    report = run(job, progress, console.print)
    if "settings" not in report:  # one of a team, of which another has written
        return
    print_metrics(report)
    size, seconds = report["size"], report["seconds"]
    console.print(
        f"{human_bytes(size['before'])} -> {human_bytes(size['after'])}, "
        f"quantized in {seconds['quantize']:.0f} s, "
        f"peak memory {human_bytes(report['peak_memory'])}"
    )
    console.print(f"checkpoint: {job.out}\nreport:     {job.out / 'report.html'}")
