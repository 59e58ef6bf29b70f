"""Lines over steps or shots as a chart in SVG: part of a page, with values on hover and in words, and without a script.

Its colors and widths are those of markup.py.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT, ROW = 340, 200, 15  # user units; a row is a line of text
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 24, 34  # margins of the plot
MOST_TICKS = 5
MOST_POINTS = 80  # of a line; thousands would make the page large


class Line(NamedTuple):
    """One line of a chart.

    Args:
        points: (x, y), x rising.
        label: what stands for it below the chart; "" for a line that the title names.
        color: 0 to 3.
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

    Values of the first line are shown on hover, as are those with an interval. Ends and extremes of the same lines are
    the text for those who do not see the picture.
    """
    values = [y for line in lines for _, y in line.points] + [end for line in lines for one in line.intervals
                                                              for end in one]
    across = [x for line in lines for x, _ in line.points] or [0.0]
    x_of = scale(min(across), max(across), LEFT, WIDTH - RIGHT)
    low, high = min([0.0, *values]), max([0.0, *values]) if top is None else top
    high = high if high > low else low + 1  # all 0: the line is at the bottom
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
        parts += [f'<path class="line {line.style}" style="stroke: var(--c{line.color})" d="M{LEFT} {y}h24"/>',
                  f'<text x="{LEFT + 30}" y="{y + 4}">{html.escape(line.label)}</text>']
    if not lines[0].intervals:  # those have a title of their own
        parts += _hovered(lines[0], x_of, y_of, x_label)
    parts += [mark for line in lines for mark in _bars(line, x_of, y_of, x_label)]
    box = f"0 0 {WIDTH} {HEIGHT + len(labelled) * ROW}"
    name = html.escape(f"{title}: " + "; ".join(
        _told(line, x_label) for index, line in enumerate(lines) if index == 0 or line.intervals))
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


def kept(values: Sequence[float]) -> list[int]:
    """The indices of at most MOST_POINTS values: of each stretch the lowest and the highest, and both ends.

    So a spike of one step in thousands is still there.
    """
    if len(values) <= MOST_POINTS:
        return list(range(len(values)))
    size, chosen = math.ceil(len(values) / (MOST_POINTS // 2 - 1)), {0, len(values) - 1}
    for start in range(0, len(values), size):
        stretch = range(start, min(start + size, len(values)))
        chosen |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(chosen)


def _drawn(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[str]:
    if not line.points:
        return []
    shown = [line.points[index] for index in kept([y for _, y in line.points])]
    path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in shown)
    return [f'<path class="line {line.style}" style="stroke: var(--c{line.color})" d="{path}"/>']


def _bars(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float], x_label: str) -> list[str]:
    """The intervals of a line, each with a square at its value."""
    parts, color = [], f"var(--c{line.color})"
    for index in kept([y for _, y in line.points]) if line.intervals else []:
        (x, y), (low, high) = line.points[index], line.intervals[index]
        bar = f"M{x_of(x):.1f} {y_of(low):.1f}V{y_of(high):.1f}"
        name = html.escape(f"{x_label} {x:g}, {line.label}")
        parts += [f'<path class="line" style="stroke: {color}" d="{bar}"/>',
                  f'<rect x="{x_of(x) - 3:.1f}" y="{y_of(y) - 3:.1f}" width="6" height="6" style="fill: {color}">'
                  f"<title>{name}: {y:.4g} ({low:.4g} to {high:.4g})</title></rect>"]
    return parts


def _hovered(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float], x_label: str) -> list[str]:
    """A column for each point, up to half way to its neighbours: wherever the mouse is, one value is shown."""
    points = [line.points[index] for index in kept([y for _, y in line.points])]
    middles = [x_of((one + other) / 2) for (one, _), (other, _) in zip(points, points[1:])]
    edges = [LEFT, *middles, WIDTH - RIGHT]
    return [f'<g class="at"><title>{html.escape(x_label)} {x:g}: {y:.6g}</title><rect x="{left:.1f}" y="{TOP}" '
            f'width="{right - left:.1f}" height="{HEIGHT - BOTTOM - TOP}"/>'
            f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/></g>'
            for (x, y), left, right in zip(points, edges, edges[1:])]


def _told(line: Line, x_label: str) -> str:
    name = f"{line.label}: " if line.intervals else ""
    if not line.points:
        return f"{name}no values"
    by_value = sorted(line.points, key=lambda point: point[1])
    ends = {"first": line.points[0], "last": line.points[-1], "lowest": by_value[0], "highest": by_value[-1]}
    return name + ", ".join(f"{which} {y:.4g} at {x_label} {x:g}" for which, (x, y) in ends.items())
