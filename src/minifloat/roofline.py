"""A roofline: speed over operations per byte of traffic, under what memory and arithmetic allow.

After Williams, Waterman and Patterson, Roofline: an insightful visual performance model
(Communications of the ACM 52(4), 2009). Both axes are logarithmic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from minifloat.charts import BOTTOM, LEFT, RIGHT, TOP, WIDTH

HEIGHT = 420


@dataclass(frozen=True)
class Dot:
    """One measurement: operations per byte, and billions of operations a second; `css` as in charts."""

    name: str
    intensity: float
    speed: float
    css: str


def roofline(dots: Sequence[Dot], bandwidth: float, peak: float) -> str:
    """The plot as SVG.

    Args:
        dots: measurements, each with positive numbers.
        bandwidth: billions of bytes a second.
        peak: billions of operations a second.
    """
    ridge = peak / bandwidth
    x_marks = _decades([d.intensity for d in dots] + [ridge])
    y_marks = _decades([d.speed for d in dots] + [peak])

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * _part(value, x_marks)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * _part(value, y_marks)

    out = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>Roofline</title>']
    for mark in y_marks:
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" '
            f'y2="{y(mark):.1f}"/><text class="tick" x="{LEFT - 8}" y="{y(mark) + 4:.1f}" '
            f'text-anchor="end">{mark:g}</text>'
        )
    for mark in x_marks:
        out.append(
            f'<text class="tick" x="{x(mark):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{mark:g}</text>'
        )
    low = max(x_marks[0], y_marks[0] / bandwidth)  # where the slope enters the plot
    corners = [(low, low * bandwidth), (ridge, peak), (x_marks[-1], peak)]
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in corners)
    out.append(f'<polyline class="line roof" points="{line}"/>')
    for dot in dots:
        tip = f"{dot.name}: {dot.speed:.0f} G operations/s, {dot.intensity:.3g} a byte"
        out.append(
            f'<circle class="dot {dot.css}" cx="{x(dot.intensity):.1f}" '
            f'cy="{y(dot.speed):.1f}" r="4"><title>{escape(tip)}</title></circle>'
        )
    out.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" '
        f'text-anchor="middle">operations per byte</text>'
        f'<text class="axis" x="{LEFT - 40}" y="16">G operations/s</text></svg>'
    )
    return "".join(out)


def _decades(values: Sequence[float]) -> list[float]:
    """Powers of ten around all values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _part(value: float, marks: Sequence[float]) -> float:
    """Where a value lies between the outer marks, 0 to 1."""
    return math.log10(value / marks[0]) / math.log10(marks[-1] / marks[0])
