"""Inline SVG of the report: dots, a line and small histograms, without a plotting library.

A report must open years later, offline, in any browser, so its figures are text. Colours are CSS
classes of the page: one file then serves the light and the dark scheme. Tooltips are `<title>`
elements, which need no script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1080, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 40
COLOURS = "abcde"

# The page of these charts; here because its classes are the colours of the charts.
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--soft:#f5f6f7;--ink:#1b1f24;--dim:#5c6670;--rule:#dfe3e7;
--a:#2a6fc9;--b:#d9622b;--c:#2f8f5b;--d:#8a55c7;--e:#b3261e;--warn:#fff6e0;--edge:#d79b1e}
@media(prefers-color-scheme:dark){:root{--bg:#15181c;--soft:#1d2126;--ink:#e6e9ec;--dim:#9aa4ae;
--rule:#333a42;--a:#5b9be8;--b:#e8814f;--c:#5cc48a;--d:#b48ae6;--e:#ef7b72;--warn:#2b2415;--edge:#b9851c}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1128px;margin:0 auto;padding:40px 24px 64px}h1{font-size:28px;line-height:1.2;
margin:4px 0 10px;overflow-wrap:anywhere}h2{font-size:17px;margin:36px 0 8px}
.over,.note{color:var(--dim);margin:0 0 8px}.verdict{font-size:18px;margin:0}
.warn{background:var(--warn);border-left:3px solid var(--edge);padding:10px 18px;margin-top:24px}
.warn h2{margin:0;font-size:15px}.warn ul{margin:4px 0 0;padding-left:18px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--rule)}
th{color:var(--dim);font-weight:500;font-size:13px}.n{text-align:right;padding-right:0;
padding-left:20px;white-space:nowrap}td{overflow-wrap:anywhere}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 48px}
.wide{overflow-x:auto}.plot{display:block;width:100%;min-width:720px}
.grid{stroke:var(--rule)}.base{stroke:var(--dim)}svg text{fill:var(--dim);font-size:12px}
svg .legend{fill:var(--ink);font-size:13px}.dot{stroke:var(--bg);stroke-width:1}
.dot.a{fill:var(--a)}.dot.b{fill:var(--b)}.dot.c{fill:var(--c)}.dot.d{fill:var(--d)}
.dot.e{fill:var(--e)}.line{fill:none;stroke-width:2}.line.a{stroke:var(--a)}
.line.b{stroke:var(--b)}.line.c{stroke:var(--c)}.line.d{stroke:var(--d)}.line.e{stroke:var(--e)}
.line.roof{stroke:var(--dim)}
.bar{fill:var(--a)}.many{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));
gap:20px 28px}figure{margin:0}figcaption{font-size:12px;color:var(--dim);overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;direction:ltr}.hist{display:block;width:100%}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:18px 24px}
.small table{font-size:13px}.small td{white-space:pre;overflow-wrap:normal}
.gallery figure{margin-top:10px}.names{display:grid;grid-auto-flow:column;grid-auto-columns:1fr;
font-size:13px;font-weight:500;position:sticky;top:0;background:var(--bg);padding:6px 0}
.strip{display:block;width:100%;image-rendering:pixelated;border-radius:4px}
.scroll{max-height:560px;overflow:auto;border:1px solid var(--rule);border-radius:6px}
.scroll table{font-size:12.5px;border-collapse:separate;border-spacing:0}
.scroll th{position:sticky;top:0;background:var(--soft);z-index:1}
.scroll th,.scroll td{padding:5px 12px;white-space:nowrap}
.scroll tr:last-child td{border-bottom:0}summary{cursor:pointer;color:var(--dim)}
pre{background:var(--soft);padding:14px;border-radius:6px;overflow:auto;font-size:12.5px}
"""

Point = tuple[str, float | None]  # a label and its value; None leaves a gap


@dataclass(frozen=True)
class Series:
    """One colour of a plot; `css` is one of `COLOURS`, which the page defines."""

    name: str
    css: str
    points: Sequence[Point]
    line: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high], so a reader can interpolate by eye."""
    if high <= low:
        low, high = low - 1, high + 1
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def plot(series: Sequence[Series], x_title: str, y_title: str, unit: str = "dB") -> str:
    """Values over their position. Empty text if there is nothing to draw."""
    series = [s for s in series if any(v is not None for _, v in s.points)]
    if not series:
        return ""
    values = [v for s in series for _, v in s.points if v is not None]
    count = max(len(s.points) for s in series)
    marks = ticks(min(values), max(values))
    span = (marks[-1] - marks[0]) or 1.0

    def x(i: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i + 0.5) / count

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (marks[-1] - value) / span

    out = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    out.append(f"<title>{escape(y_title)} over {escape(x_title)}</title>")
    for mark in marks:
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" '
            f'y2="{y(mark):.1f}"/><text class="tick" x="{LEFT - 8}" y="{y(mark) + 4:.1f}" '
            f'text-anchor="end">{mark:.6g}</text>'
        )
    stride = max(1, math.ceil(ticks(0, count, 12)[1]))
    for i in range(0, count, stride):
        out.append(
            f'<text class="tick" x="{x(i):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{i}</text>'
        )
    out.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" '
        f'text-anchor="middle">{escape(x_title)}</text>'
        f'<text class="axis" x="{LEFT - 40}" y="16">{escape(y_title)} ({escape(unit)})</text>'
    )
    radius = 4 if count <= 150 else 3 if count <= 400 else 2
    for s in series:
        for path in _runs(s.points) if s.line else []:
            corners = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in path)
            out.append(f'<polyline class="line {s.css}" points="{corners}"/>')
        for i, (label, value) in enumerate(s.points):
            if value is not None:
                tip = f"{label}: {s.name} {value:.2f} {unit}"
                out.append(
                    f'<circle class="dot {s.css}" cx="{x(i):.1f}" cy="{y(value):.1f}" '
                    f'r="{radius}"><title>{escape(tip)}</title></circle>'
                )
    if len(series) > 1:
        out.append(_legend(series))
    out.append("</svg>")
    return "".join(out)


def _legend(series: Sequence[Series]) -> str:
    """Names at the top right, above the grid so that they never cover a dot."""
    out: list[str] = []
    right = float(WIDTH - RIGHT)
    for s in reversed(series):
        right -= 7.5 * len(s.name) + 28
        out.append(
            f'<circle class="dot {s.css}" cx="{right + 6:.1f}" cy="12" r="4.5"/>'
            f'<text class="legend" x="{right + 16:.1f}" y="16">{escape(s.name)}</text>'
        )
    return "".join(out)


def _runs(points: Sequence[Point]) -> list[list[tuple[int, float]]]:
    """Stretches without a gap: a line across a missing value would invent it."""
    runs: list[list[tuple[int, float]]] = [[]]
    for i, (_, value) in enumerate(points):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if len(run) > 1]


def histogram(counts: Sequence[tuple[float, float]]) -> str:
    """Share of the weights on each grid value, one bar a code.

    Bars are equally spaced: on a true axis the dense small values of a float would overlap.
    """
    counts = sorted(counts)
    total = sum(n for _, n in counts)
    if total <= 0:
        return ""
    width, height, base = 240.0, 110.0, 92.0
    most = max(n for _, n in counts)
    step = width / len(counts)
    gap = min(2.0, 0.25 * step)
    out = [f'<svg class="hist" viewBox="0 0 {width:g} {height:g}" role="img">']
    for i, (value, n) in enumerate(counts):
        tall = (base - 4) * n / most
        tip = f"{value:g}: {100 * n / total:.3g} % ({n:,.0f})"
        out.append(
            f'<rect class="bar" x="{i * step + gap / 2:.2f}" y="{base - tall:.2f}" '
            f'width="{step - gap:.2f}" height="{tall:.2f}"><title>{escape(tip)}</title></rect>'
        )
    out.append(f'<line class="base" x1="0" x2="{width:g}" y1="{base}" y2="{base}"/>')
    middle = (len(counts) - 1) // 2
    labels = {0: "start", middle: "middle", len(counts) - 1: "end"}
    for i, anchor in labels.items() if len(counts) > 2 else [(0, "start")]:
        at = {"start": 0.0, "end": width}.get(anchor, (i + 0.5) * step)
        out.append(
            f'<text class="tick" x="{at:.1f}" y="{base + 15}" '
            f'text-anchor="{anchor}">{counts[i][0]:g}</text>'
        )
    out.append("</svg>")
    return "".join(out)
