"""The report of a run: `report.json` for programs, `report.html` for people.

The page is one file without scripts or links, so it can be mailed, archived and opened offline.
Whatever a run could not measure is absent, None or NaN; a report shows what is there, because
losing hours of quantization to a missing number would be worse than an empty cell.
"""

import base64
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from minifloat.charts import Series, histogram, plot
from minifloat.page import document, section, table, write

NONE = "—"
WORST = 8  # layers with a histogram of their own


def write_report(report: dict[str, Any], folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    data = clean(report)
    write(folder / "report.json", json.dumps(data, indent=1, allow_nan=False) + "\n")
    page = folder / "report.html"
    write(page, _page(data, _pictures(data.get("pictures") or [], folder)))
    return page


def _pictures(pictures: list[dict[str, Any]], folder: Path) -> str:
    """The strips of images with their captions; the page holds them, so it stays one file."""
    drawn = [
        picture(folder, p["file"], f"{p['caption']} · {_number(p.get('psnr'), '.1f')} dB")
        for p in pictures
    ]
    return f'<div class="strips">{"".join(drawn)}</div>' if drawn else ""


def picture(folder: Path, file: str, caption: str) -> str:
    """A PNG of a folder with its caption, inside the page."""
    encoded, caption = base64.b64encode((folder / file).read_bytes()).decode(), escape(caption)
    return (
        f'<figure><img class="strip" alt="{caption}" src="data:image/png;base64,{encoded}">'
        f'<figcaption title="{caption}">{caption}</figcaption></figure>'
    )


def summary_table(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (name, full precision, quantized, change) of the metrics and the size."""
    report = clean(report)
    rows = []
    for m in report.get("metrics") or []:
        before, after = m.get("full_precision"), m.get("quantized")
        old = _with_error(before, m.get("full_precision_error"))
        new = _with_error(after, m.get("quantized_error")) + interval(m.get("quantized_interval"))
        rows.append((str(m.get("name") or NONE), old, new, _change(before, after)))
    size = report.get("size") or {}
    before, after = size.get("before"), size.get("after")
    if before is not None or after is not None:
        change = f"{before / after:.2f}x smaller" if before and after else NONE
        rows.append(("size", human_bytes(before), human_bytes(after), change))
    zeros = report.get("zeros")
    if zeros:
        before, after = zeros["before"], zeros["after"]
        rows.append(("weights at zero", f"{before:.2%}", f"{after:.2%}", f"{after - before:+.2%}"))
    return rows


def human_bytes(count: float | None) -> str:
    """Bytes in the largest binary unit that keeps the number above one."""
    if count is None:
        return NONE
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.4g} {units[0]}"


def clean(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinity become null, unknown types text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):  # a number of numpy or torch that slipped through
        return clean(value.tolist())
    return str(value)


def _number(value: Any, form: str = ".4g") -> str:
    return NONE if value is None else format(value, form)


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) + (f" ± {error:.2g}" if value is not None and error is not None else "")


def interval(ends: list[float | None] | None) -> str:
    """The ends of a figure's interval in brackets, or nothing."""
    if not ends or None in ends:  # equal images have no finite PSNR
        return ""
    return f" ({ends[0]:.3g} to {ends[1]:.3g})"


def _change(before: float | None, after: float | None) -> str:
    """Percent, or the difference if the reference is zero (a divergence from itself)."""
    if before is None or after is None:
        return NONE
    return f"{100 * (after - before) / abs(before):+.2f} %" if before else f"{after - before:+.3g}"


def _verdict(report: dict[str, Any]) -> str:
    size, parts = report.get("size") or {}, []
    before, after = size.get("before"), size.get("after")
    if before and after:
        parts.append(
            f"{human_bytes(before)} became {human_bytes(after)}, {before / after:.2f}x smaller"
        )
    for m in report.get("metrics") or []:
        old, new, name = m.get("full_precision"), m.get("quantized"), str(m.get("name") or "")
        known = old is not None and new is not None
        if known and ("perplexity" in name.lower() or "ppl" in name.lower()):
            parts.append(f"{name} went from {old:.4g} to {new:.4g} ({_change(old, new)})")
            break
        if new is not None and name.startswith("PSNR"):
            parts.append(f"its images agree with full precision to {new:.1f} dB")
            break
    return "; ".join(parts) + "." if parts else "No size or quality was measured."


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _histograms(ledger: list[dict[str, Any]]) -> str:
    """All weights of each spec together, then the layers that suffered most."""
    total: defaultdict[str, defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    shown = [e for e in ledger if e.get("histogram")]
    for e in shown:
        for value, count in _bins(e):
            total[str(e.get("weight") or NONE)][value] += count
    figures = [(f"all {spec}", list(bins.items())) for spec, bins in total.items()]
    worst = sorted(
        (e for e in shown if e.get("weight_sqnr") is not None), key=lambda e: e["weight_sqnr"]
    )
    for e in worst[:WORST]:
        figures.append((f"{e['weight_sqnr']:.1f} dB · {e.get('name')}", _bins(e)))
    drawn = [
        f'<figure><figcaption title="{escape(name)}">{escape(name)}</figcaption>{svg}</figure>'
        for name, bins in figures
        if (svg := histogram(bins))
    ]
    return f'<div class="many">{"".join(drawn)}</div>' if drawn else ""


def _bins(entry: dict[str, Any]) -> list[tuple[float, float]]:
    return [(v, n) for v, n in entry["histogram"] if v is not None and n is not None]


def _ledger_row(e: dict[str, Any]) -> list[str]:
    scale = (e.get("scale_min"), e.get("scale_max"))
    between = NONE if scale == (None, None) else " to ".join(_number(s, ".3g") for s in scale)
    status = str(e.get("status") or NONE) + (f": {e['reason']}" if e.get("reason") else "")
    shape = "x".join(str(n) for n in e.get("shape") or []) or NONE
    words = [str(e.get("name") or NONE), status, e.get("weight") or NONE, e.get("input") or NONE]
    forms = {"parameters": ",", "bits": ".4g", "weight_sqnr": ".2f", "output_sqnr": ".2f"}
    parameters, bits, *sqnr = (_number(e.get(k), f) for k, f in forms.items())
    samples = _number(e.get("samples"), ",")
    size, kernel = human_bytes(e.get("bytes")), e.get("kernel") or NONE
    kernel += f" ({e['kernel_reason']})" if e.get("kernel_reason") else ""
    return [*words, shape, parameters, bits, size, *sqnr, samples, between, kernel]


_LEDGER = ["parameter", "status", "weight", "input", "shape", "parameters", "bits", "size",
           "weight SQNR", "output SQNR", "samples", "scale", "kernel"]  # fmt: skip


def _page(report: dict[str, Any], pictures: str = "") -> str:
    ledger = report.get("ledger") or []
    layers = [e for e in ledger if e.get("status") == "quantized"]
    series = [
        Series(name, css, [(str(e.get("name")), e.get(key)) for e in layers])
        for name, css, key in (("weight", "a", "weight_sqnr"), ("output", "b", "output_sqnr"))
    ]
    dots = plot(series, "quantized layer, in order", "SQNR")
    blocks = [(str(name), value) for name, value in report.get("block_sqnr") or []]
    line = plot([Series("block output", "a", blocks, line=True)], "block", "Output SQNR")
    times = [(str(name), value) for name, value in report.get("step_sqnr") or []]
    steps = plot([Series("prediction", "b", times, line=True)], "call of the denoiser", "SQNR")
    held = [(str(name), value) for name, value in report.get("memory") or []]
    memory = plot([Series("resident", "b", held, line=True)], "block", "Memory", unit="MiB")
    size = report.get("size") or {}
    names = {"before": "before", "after": "after, on disk", "theory": "after, in theory"}
    sizes = [(names.get(k, k), human_bytes(v), _number(v, ",")) for k, v in size.items()]
    facts = [(k, report.get(k)) for k in ("model", "method", "paper", "seed", "minifloat")]
    facts += (report.get("settings") or {}).items()
    facts += [(f"{k} version", v) for k, v in (report.get("versions") or {}).items()]
    settings = table(["name", "value"], [(k, _json(v)) for k, v in facts if v is not None], 2)
    costs = [(k, f"{_number(v, ',.1f')} s") for k, v in (report.get("seconds") or {}).items()]
    if report.get("peak_memory") is not None:
        costs.append(("peak memory", human_bytes(report["peak_memory"])))
    warnings = "".join(f"<li>{escape(str(w))}</li>" for w in report.get("warnings") or [])
    title = Path(str(report.get("model") or "Quantization report")).name
    method = f"<p class='over'>minifloat · {escape(str(report.get('method') or 'report'))}</p>"
    scroll = table(_LEDGER, map(_ledger_row, ledger), 5)
    plan = escape(json.dumps(report.get("plan"), indent=1)) if report.get("plan") else ""
    verdict = escape(_verdict(report))
    body = [
        f"<header>{method}<h1>{escape(title)}</h1><p class='verdict'>{verdict}</p></header>",
        f'<section class="warn"><h2>Warnings</h2><ul>{warnings}</ul></section>' if warnings else "",
        section("Quality", table(["metric", "full precision", "quantized", "change"],
                                   [r for r in summary_table(report) if r[0] != "size"])),
        section("Pictures", pictures, "Full precision, quantized, and four times their difference "
                 "around grey, from the same noise; PSNR of each."),
        '<div class="two">', section("Size", table(["", "size", "bytes"], sizes)),
        section("Cost", table(["", "value"], costs)), "</div>",
        section("Error by layer", f'<div class="wide">{dots}</div>' if dots else "",
                 "Signal to quantization noise of the weight and the output; higher is better."),
        section("Error by block", f'<div class="wide">{line}</div>' if line else "",
                 "How the error of the hidden states grows through the model."),
        section("Error by time step", f'<div class="wide">{steps}</div>' if steps else "",
                 "Of the predictions along a full-precision trajectory, from noise to image."),
        section("Memory", f'<div class="wide">{memory}</div>' if memory else "",
                 "Of the process after each block; the peak within blocks is under Cost."),
        section("Use of the grid", _histograms(ledger),
                 "Share of weights on each code: all layers of a format, then the worst layers."),
        section("Settings", settings),
        section("Ledger", f'<div class="scroll">{scroll}</div>' if scroll else "",
                 f"Every parameter of the model: {len(layers)} of {len(ledger)} are quantized."),
        section("Plan", f"<details><summary>JSON</summary><pre>{plan}</pre></details>"
                 if plan else ""),
    ]  # fmt: skip
    return document(title, body)
