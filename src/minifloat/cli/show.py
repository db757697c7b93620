"""show: a checkpoint's layers, the formats, the methods."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minifloat.cli.screen import console, print_metrics
from minifloat.errors import UserError


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
        print_metrics(report)
