"""export, import and verify: checkpoints of other tools."""

from pathlib import Path
from typing import Annotated

import typer

from minifloat.cli.screen import console
from minifloat.errors import UserError


def export(
    folder: Annotated[Path, typer.Argument(help="A checkpoint of 'minifloat quantize'.")],
    to: Annotated[
        str,
        typer.Option(
            help="compressed-tensors, modelopt, quark, fp8, humming, sdnq, torchao or gguf."
        ),
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
