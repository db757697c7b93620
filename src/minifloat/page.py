"""Pieces of a page: one HTML file without scripts or links, which opens offline and years later."""

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from minifloat.charts import STYLE


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], text: int = 1) -> str:
    """A table whose first `text` columns are words and the others right-aligned numbers."""
    side = ["" if i < text else ' class="n"' for i in range(len(head))]
    top = "".join(f"<th{s}>{escape(h)}</th>" for s, h in zip(side, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{s}>{escape(str(c))}</td>" for s, c in zip(side, r, strict=True))
        + "</tr>"
        for r in rows
    )  # fmt: skip
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def section(title: str, body: str, note: str = "") -> str:
    """A titled part, or nothing at all for an empty body."""
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>" if body else ""


def document(title: str, body: Sequence[str]) -> str:
    """The whole page of its sections."""
    title = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · minifloat</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def write(path: Path, text: str) -> None:
    """Replace the file at once: a reader never sees half a report."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)  # os.replace: atomic within a folder
    finally:
        temporary.unlink(missing_ok=True)
