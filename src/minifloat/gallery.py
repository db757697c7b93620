"""Quantized pipelines beside each other: `compare.json` for programs, `compare.html` for people."""

import json
from html import escape
from pathlib import Path
from typing import Any

from minifloat.charts import COLOURS, Series, plot
from minifloat.page import document, section, table, write
from minifloat.report import clean, human_bytes, interval, picture

_NONE = "—"


def write_gallery(report: dict[str, Any], folder: Path) -> Path:
    """Write both files of a comparison (`jobs/beside.py`) into `folder`; the path of the page."""
    data = clean(report)
    write(folder / "compare.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    page = folder / "compare.html"
    write(page, _page(data, folder))
    return page


def rows(report: dict[str, Any], *, intervals: bool) -> list[list[str]]:
    """The table of a comparison: a metric a row; full precision first, then a column a model."""
    models = report["models"]
    metrics = {m["name"]: m.get("full_precision") for model in models for m in model["metrics"]}
    found = [
        [name, _value(before), *(_cell(model, name, intervals) for model in models)]
        for name, before in metrics.items()
    ]
    sizes = [model.get("size") or {} for model in models]
    before = next((size["before"] for size in sizes if size.get("before")), None)
    found.append(["size", human_bytes(before), *(human_bytes(s.get("after")) for s in sizes)])
    zeros = [model.get("zeros") or {} for model in models]
    none = next((z["before"] for z in zeros if z), None)
    return [*found, ["weights at zero", _share(none), *(_share(z.get("after")) for z in zeros)]]


def _cell(model: dict[str, Any], name: str, intervals: bool) -> str:
    row: dict[str, Any] = next((m for m in model["metrics"] if m["name"] == name), {})
    ends = interval(row.get("quantized_interval")) if intervals else ""
    return f"{_value(row.get('quantized'))}\n{ends.strip()}".strip()


def _value(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}"


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2%}"


def _page(report: dict[str, Any], folder: Path) -> str:
    models = report["models"]
    head = ["", "full precision", *(model["name"] for model in models)]
    series = [
        Series(m["name"], COLOURS[i % len(COLOURS)], [tuple(p) for p in m["step_sqnr"]], line=True)
        for i, m in enumerate(models)
    ]
    steps = plot(series, "call of the denoiser", "SQNR")
    names = "".join(f"<span>{escape(name)}</span>" for name in head[1:])
    strips = "".join(picture(folder, p["file"], p["caption"]) for p in report["pictures"])
    settings = [(k, v) for k, v in report["settings"].items() if v is not None]
    title = Path(report["model"]).name
    body = [
        f"<header><p class='over'>minifloat</p><h1>{escape(title)}</h1></header>",
        section("Quality", f'<div class="wide small">{table(head, rows(report, intervals=True))}</div>',
                 "Means over images, with 95 % bootstrap intervals over images."),
        section("Error by time step", f'<div class="wide">{steps}</div>' if steps else "",
                 "Of the predictions along a full-precision trajectory, from noise to image."),
        section("Pictures", f'<div class="gallery"><div class="names">{names}</div>{strips}</div>',
                 "A column a model, a row a prompt, from the same noise."),
        section("Settings", table(["", "value"], settings)),
    ]  # fmt: skip
    return document(title, body)
