"""What commands share of the screen: the console, progress, the table of metrics."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from minifloat.calibrate.walk import Window

console = Console()


def progress(windows: Iterable["Window"], total: int) -> Iterable["Window"]:
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


def print_metrics(report: dict[str, Any]) -> None:
    from minifloat.report import summary_table

    table = Table("", "full precision", "quantized", "change")
    for row in summary_table(report):
        table.add_row(*row)
    console.print(table)
