"""evaluate and bench: how good a checkpoint is, and how fast on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minifloat.cli.screen import console, print_metrics


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
        print_metrics({"metrics": metrics})
        if tasks:
            from minifloat.evaluate.harness import tasks as run_tasks

            console.print_json(
                json.dumps(
                    run_tasks(model, tokenizer, tasks.split(","), folder=tasks_folder), default=str
                )
            )


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
