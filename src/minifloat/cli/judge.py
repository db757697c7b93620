"""evaluate and bench: how good a checkpoint is, and how fast on this machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from minifloat.cli.screen import console, print_metrics
from minifloat.errors import UserError

if TYPE_CHECKING:
    from minifloat.jobs.beside import Beside


def evaluate(
    folders: Annotated[
        list[str], typer.Argument(help="A quantized checkpoint, or several pipelines.")
    ],
    against: Annotated[str, typer.Option(help="The full-precision model or pipeline.")],
    tokens: Annotated[int, typer.Option(help="Held-out tokens.")] = 4096,
    length: Annotated[
        int, typer.Option(help="Tokens in a window, at most the model's context.")
    ] = 512,
    data: Annotated[
        Path | None, typer.Option(help="Held-out text (UTF-8), or prompts of a pipeline.")
    ] = None,
    tasks: Annotated[str, typer.Option(help="lm-eval tasks, separated by commas.")] = "",
    tasks_folder: Annotated[Path | None, typer.Option(help="Folder of further tasks.")] = None,
    images: Annotated[int, typer.Option(help="Images of a pipeline.")] = 16,
    steps: Annotated[int, typer.Option(help="Sampler steps of a pipeline.")] = 20,
    guidance: Annotated[float | None, typer.Option(help="Its guidance scale.")] = None,
    features: Annotated[
        str | None, typer.Option(help="A vision model that looks at images: folder, hub, zoo:vlm.")
    ] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of real pictures beside them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of compare.html, of pipelines.")] = Path(
        "compared"
    ),
) -> None:
    """Compare a quantized checkpoint with its full-precision model on held-out text or images."""
    from minifloat.models.pipeline import is_pipeline
    from minifloat.models.zoo import resolve

    if is_pipeline(resolve(against)):
        from minifloat.jobs.beside import Beside

        asked = Beside(against, folders, images, steps, guidance, data, features, real)
        _evaluate_images(asked, out)
        return
    if len(folders) > 1:
        raise UserError("language models are compared one at a time")
    folder = folders[0]
    from minifloat.evaluate.compare import compare
    from minifloat.layers import weights_held
    from minifloat.models.load import context, load_model, read_tokens

    reference, _ = load_model(resolve(against))
    model, tokenizer = load_model(folder)
    held_out = read_tokens(tokenizer, data, default="heldout")[:tokens]
    with weights_held(model):
        metrics = compare(reference, model, held_out, window=context(model, length))
        print_metrics({"metrics": metrics})
        if tasks:
            from minifloat.evaluate.harness import tasks as run_tasks

            console.print_json(
                json.dumps(
                    run_tasks(model, tokenizer, tasks.split(","), folder=tasks_folder), default=str
                )
            )


def _evaluate_images(asked: "Beside", out: Path) -> None:
    from minifloat.gallery import rows, write_gallery
    from minifloat.jobs.beside import compare_pipelines

    out.mkdir(parents=True, exist_ok=True)
    with console.status("each pipeline makes its images"):
        report = compare_pipelines(asked, out)
    table = Table("", "full precision", *(model["name"] for model in report["models"]))
    for row in rows(report, intervals=False):
        table.add_row(*row)
    console.print(table)
    console.print(f"[bold]{write_gallery(report, out)}[/bold]")


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
