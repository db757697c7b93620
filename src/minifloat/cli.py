"""The command line: quantize, evaluate, export, import, verify, show, bench, demo.

Mistakes are answered with one sentence and exit code 2. Heavy imports wait inside the commands, so
that `--help` answers at once.
"""

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from minifloat.errors import UserError

if TYPE_CHECKING:
    from minifloat.calibrate.walk import Window
    from minifloat.jobs.job import Job

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")
]


@app.command()
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

    settings = _settings(setting or [])
    job = Job(model, out, method, settings, data, plan, seed, device, samples, length)
    job = replace(job, evaluate=evaluate, steps=steps, guidance=guidance, resume=resume)
    job = replace(job, unseen=unseen)
    _quantize(replace(job, memory=_bytes(memory) if memory else None))


@app.command()
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


@app.command()
def evaluate(
    folder: Annotated[str, typer.Argument(help="A quantized checkpoint.")],
    against: Annotated[str, typer.Option(help="The full-precision model.")],
    tokens: Annotated[int, typer.Option(help="Held-out tokens.")] = 4096,
    length: Annotated[
        int, typer.Option(help="Tokens in a window, at most the model's context.")
    ] = 512,
    data: Annotated[Path | None, typer.Option(help="Held-out text (UTF-8).")] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, separated by commas.")] = "",
    tasks_folder: Annotated[Path | None, typer.Option(help="Folder of further tasks.")] = None,
) -> None:
    """Compare a quantized checkpoint with its full-precision model on held-out text."""
    from minifloat.evaluate.compare import compare
    from minifloat.layers import weights_held
    from minifloat.models.load import context, load_model, read_tokens
    from minifloat.models.zoo import resolve

    reference, _ = load_model(resolve(against))
    model, tokenizer = load_model(folder)
    held_out = read_tokens(tokenizer, data, default="heldout")[:tokens]
    with weights_held(model):
        metrics = compare(reference, model, held_out, window=context(model, length))
        _print_metrics({"metrics": metrics})
        if tasks:
            from minifloat.evaluate.harness import tasks as run_tasks

            console.print_json(
                json.dumps(
                    run_tasks(model, tokenizer, tasks.split(","), folder=tasks_folder), default=str
                )
            )


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A checkpoint of 'minifloat quantize'.")],
    to: Annotated[
        str, typer.Option(help="compressed-tensors, modelopt, quark, fp8, humming, sdnq or gguf.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the exported checkpoint.")],
    separate: Annotated[
        bool, typer.Option("--separate", help="For readers that do not fuse q/k/v and gate/up.")
    ] = False,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Leave inputs in full precision.")
    ] = False,
) -> None:
    """Write a quantized checkpoint as vLLM, SGLang, transformers and others read it."""
    from minifloat.export.gguf.write import export_gguf
    from minifloat.export.pipeline import export_pipeline, is_pipeline
    from minifloat.export.write import export as write
    from minifloat.report import human_bytes

    if to == "gguf":
        done = export_gguf(folder, out, weights_only=weights_only)
    else:
        chosen = export_pipeline if is_pipeline(folder) else write
        done = chosen(folder, to, out, separate=separate, weights_only=weights_only)
    console.print(
        f"{done['layers']} layers as {to}: {human_bytes(done['before'])} -> "
        f"{human_bytes(done['after'])}\ncheckpoint: {out}"
    )


@app.command("import")
def import_folder(
    folder: Annotated[
        Path, typer.Argument(help="A checkpoint of one of the contracts, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of our checkpoint.")],
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Leave inputs in full precision.")
    ] = False,
) -> None:
    """Read a quantized checkpoint of another tool into ours; its codes stay as they are."""
    from minifloat.export.read import read_folder

    count = read_folder(folder, out, weights_only=weights_only)
    console.print(f"{count} layers\ncheckpoint: {out}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="An exported checkpoint, ours or another's.")],
    reader: Annotated[
        str, typer.Option("--for", metavar="NAME==VERSION", help="One reader; all if left out.")
    ] = "",
    deep: Annotated[bool, typer.Option("--deep", help="Decode and compare every tensor.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="The checkpoint that was exported; for --deep.")
    ] = None,
) -> None:
    """Say what each reader does with a checkpoint, and by which rule; code 1 if one refuses it."""
    from minifloat.export.verify import parse_reader, worst
    from minifloat.export.verify import verify as check

    if deep != (against is not None):
        raise UserError("--deep and --against DIR go together")
    findings = check(folder, parse_reader(reader) if reader else None)
    for f in findings:
        rule = f" ({f.rule}; {f.evidence})" if f.rule else ""
        console.print(f"[bold]{f.reader} {f.verdict}[/bold] {len(f.layers)} layers: {f.says}{rule}")
    problems = _compare(folder, against) if against is not None else []
    if problems or (reader and worst(findings) == "refuses"):
        raise typer.Exit(1)


def _compare(folder: Path, against: Path) -> list[str]:
    from minifloat.export.compare import compare
    from minifloat.export.native_folder import open_native

    problems = compare(folder, open_native(against))
    for problem in problems:
        console.print(f"[red]{problem}[/red]", highlight=False)
    if not problems:
        console.print(f"every tensor decodes to that of {against}")
    return problems


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="A checkpoint's folder, 'formats' or 'methods'.")],
) -> None:
    """Show a checkpoint's layers, or all formats, or all methods."""
    if what == "formats":
        _show_formats()
    elif what == "methods":
        _show_methods()
    else:
        _show_folder(Path(what))


@app.command()
def bench(
    folder: Annotated[
        Path | None, typer.Argument(help="A checkpoint; two usual layers if there is none.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of bench.html and bench.json.")] = Path("bench"),
    tokens: Annotated[
        list[int] | None, typer.Option(help="How many tokens; may be given more than once.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Least time of a row.")] = 1.0,
    threads: Annotated[
        int | None, typer.Option(help="Threads; torch's own choice if not given.")
    ] = None,
) -> None:
    """Time a checkpoint's packed linear layers on this machine's CPU beside torch's own."""
    import torch

    from minifloat import bench as speed

    if threads is not None:
        torch.set_num_threads(threads)
    layers = speed.USUAL if folder is None else speed.layers_of(folder)
    with console.status("calls of ours and torch's layers take turns"):
        rows = list(speed.measure(layers, tuple(tokens or speed.TOKENS), seconds))
    table = Table(*speed.HEAD)
    for row in rows:
        table.add_row(*speed.cells(row))
    console.print(table)
    console.print(f"[bold]{speed.report(rows, speed.limits(), out)}[/bold]")


def main() -> None:
    """Entry point: runs the command and turns a user's mistake into one sentence and code 2."""
    try:
        app()
    except UserError as error:
        print(f"minifloat: {error}", file=sys.stderr)
        sys.exit(2)


def _settings(pairs: list[str]) -> tuple[tuple[str, str], ...]:
    settings = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, not {pair!r}")
        settings.append((key, value))
    return tuple(settings)


def _bytes(text: str) -> int:
    """A size such as 8GB, 7.5 GiB or 500M."""
    found = re.fullmatch(r"([0-9.]+)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    try:
        if found is None:
            raise ValueError
        number, unit, binary = float(found[1]), "KMGT".find(found[2].upper()) + 1, found[3]
    except ValueError:
        raise UserError(f"--memory takes a size such as 8GB, not {text!r}") from None
    base = 1024.0 if binary else 1000.0
    return round(number * base ** (unit if found[2] else 0))


def _quantize(job: "Job") -> None:
    from minifloat.jobs.run import run
    from minifloat.report import human_bytes

    report = run(job, _progress, console.print)
    if "settings" not in report:  # one of a team, of which another has written
        return
    _print_metrics(report)
    size, seconds = report["size"], report["seconds"]
    console.print(
        f"{human_bytes(size['before'])} -> {human_bytes(size['after'])}, "
        f"quantized in {seconds['quantize']:.0f} s, "
        f"peak memory {human_bytes(report['peak_memory'])}"
    )
    console.print(f"checkpoint: {job.out}\nreport:     {job.out / 'report.html'}")


def _progress(windows: Iterable["Window"], total: int) -> Iterable["Window"]:
    """Wrap the walk in a progress bar with the time left and the peak memory."""
    import resource

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[memory]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("quantizing", total=total, memory="")
        for window in windows:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            note = f"peak {peak:.1f} GiB"
            bar.update(task, advance=1, description=window.name, memory=note)
            yield window


def _print_metrics(report: dict[str, Any]) -> None:
    from minifloat.report import summary_table

    table = Table("", "full precision", "quantized", "change")
    for row in summary_table(report):
        table.add_row(*row)
    console.print(table)


def _show_formats() -> None:
    from minifloat.formats import FORMATS

    table = Table("name", "bits", "max", "smallest", "values")
    for name, fmt in FORMATS.items():
        values = "-" if fmt.is_native else str(len({v for v in fmt.values if not math.isnan(v)}))
        table.add_row(name, str(fmt.bits), f"{fmt.max:g}", f"{fmt.step:g}", values)
    console.print(table)
    console.print("Any other: e3m1, unsigned ue4m4, bias e4m3b11, top e4m3.finite|.nan|.ieee")


def _show_methods() -> None:
    import inspect

    from minifloat.methods import METHODS

    for name, function in METHODS.items():
        console.print(f"[bold]{name}[/bold]  {(function.__doc__ or '').splitlines()[0]}")
        for parameter in inspect.signature(function).parameters.values():
            console.print(f"    --set {parameter.name}={parameter.default}", highlight=False)


def _show_folder(folder: Path) -> None:
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"{folder} is no minifloat checkpoint: it has no report.json")
    report = json.loads(path.read_text())
    table = Table("parameter", "shape", "weight", "input", "bits", "SQNR dB")
    for row in report["ledger"]:
        shape = "x".join(str(size) for size in row["shape"])
        sqnr = f"{row['weight_sqnr']:.1f}" if row.get("weight_sqnr") else ""
        kind = row["weight"] or f"kept: {row['reason']}"
        table.add_row(row["name"], shape, kind, row["input"] or "", f"{row['bits']:.2f}", sqnr)
    console.print(table)
    if report.get("metrics"):
        _print_metrics(report)
