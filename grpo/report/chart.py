"""Lines over steps or shots as a chart in SVG: part of a page, with each value on hover, and without a script."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT, ROW = 340, 200, 15  # user units; a row is a line of text
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 24, 34  # margins of the plot
MOST_TICKS = 5
MOST_POINTS = 200  # with a value on hover; more would make the page large
COLORS = ("#2a7ab8", "#d96c1e", "#2f9e44", "#8a63d2")  # readable on white and on black
STYLE = f"""
svg {{ width: {WIDTH}px; max-width: 100%; font-size: 11px; margin: .3em;
  vertical-align: top; }} svg text {{ fill: currentColor; }}
svg .grid {{ stroke: currentColor; opacity: .18; }} svg .line {{ fill: none; stroke-width: 2; }}
svg .faint {{ stroke-width: 1; opacity: .45; }} svg .dashed {{ stroke-dasharray: 3 3; }}
svg circle {{ fill: transparent; }} svg circle:hover {{ fill: currentColor; }}
"""


class Line(NamedTuple):
    """One line of a chart.

    Args:
        points: (x, y), x rising.
        label: what stands for it below the chart; "" for a line that the title names.
        color: of COLORS.
        style: "faint", "dashed" or "".
        intervals: (low, high) of each point, drawn as a bar; empty for none.
    """

    points: Sequence[tuple[float, float]]
    label: str = ""
    color: int = 0
    style: str = ""
    intervals: Sequence[tuple[float, float]] = ()


def chart(title: str, lines: Sequence[Line], *, x_label: str, top: float | None = None) -> str:
    """An SVG element with a y axis from 0, so that a small change looks small, to `top` or the largest value.

    The values of the first line are shown on hover, as are those with an interval. The first line's ends are the text
    for those who do not see the picture.
    """
    values = [y for line in lines for _, y in line.points] + [end for line in lines for one in line.intervals
                                                              for end in one]
    across = [x for line in lines for x, _ in line.points] or [0.0]
    x_of = scale(min(across), max(across), LEFT, WIDTH - RIGHT)
    low, high = min([0.0, *values]), max([0.0, *values]) if top is None else top
    y_of = scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{html.escape(title)}</text>']
    for tick in ticks(low, high):
        y = y_of(tick)
        parts += [f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>',
                  f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>']
    for tick in ticks(min(across), max(across), whole=True):
        parts.append(f'<text x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + ROW}" text-anchor="middle">{tick:.6g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 5}" text-anchor="end">{html.escape(x_label)}</text>')
    labelled = [line for line in lines if line.label]
    for line in lines:
        parts += _drawn(line, x_of, y_of)
    for row, line in enumerate(labelled):
        y = HEIGHT + row * ROW
        parts += [f'<path class="line {line.style}" stroke="{COLORS[line.color]}" d="M{LEFT} {y}h24"/>',
                  f'<text x="{LEFT + 30}" y="{y + 4}">{html.escape(line.label)}</text>']
    for x, y in _some(lines[0].points if not lines[0].intervals else ()):  # those have a title of their own
        parts.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="5"><title>{html.escape(x_label)} {x:g}: '
                     f"{y:.4g}</title></circle>")
    box = f"0 0 {WIDTH} {HEIGHT + len(labelled) * ROW}"
    name = html.escape(f"{title}: {_told(lines[0].points, x_label)}")
    return f'<svg viewBox="{box}" role="img" aria-label="{name}">' + "".join(parts) + "</svg>"


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """The straight line that takes low to first and high to last; where the two are equal, all to the middle."""
    if low == high:
        return lambda value: (first + last) / 2
    return lambda value: first + (value - low) / (high - low) * (last - first)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """At most MOST_TICKS + 1 round numbers from low to high, a power of ten times 1, 2 or 5 apart."""
    if low == high:
        return [low]
    apart = (high - low) / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(apart))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= apart * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _drawn(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[str]:
    if not line.points:
        return []
    color = COLORS[line.color]
    path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
    parts = [f'<path class="line {line.style}" stroke="{color}" d="{path}"/>']
    for (x, y), (low, high) in zip(line.points, line.intervals):
        bar = f"M{x_of(x):.1f} {y_of(low):.1f}V{y_of(high):.1f}"
        parts += [f'<path class="line" stroke="{color}" d="{bar}"/>',
                  f'<rect x="{x_of(x) - 3:.1f}" y="{y_of(y) - 3:.1f}" width="6" height="6" fill="{color}"><title>'
                  f"{html.escape(line.label)}: {y:.4g} ({low:.4g} to {high:.4g})</title></rect>"]
    return parts


def _some(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most MOST_POINTS of them, evenly, with the last."""
    apart = math.ceil(len(points) / MOST_POINTS)
    return [point for index, point in enumerate(points, start=1) if index % apart == 0 or index == len(points)]


def _told(points: Sequence[tuple[float, float]], x_label: str) -> str:
    if not points:
        return "no values"
    (first, old), (last, new) = points[0], points[-1]
    return f"{old:.4g} at {x_label} {first:g}, {new:.4g} at {x_label} {last:g}"
