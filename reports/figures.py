"""Figures as inline SVG: text, so that a page made twice is the same, and coloured by the page.

Colours are classes (s0, s1, …) that the style sheet sets for light, dark and print. All text goes
through `Markup.format`, which escapes it. Nothing here knows of runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 42
COLOURS = 8  # classes s0 … s7 in the style sheet

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line, dots, or both. A None breaks the line; `notes` are shown when a dot is pointed at."""

    label: str
    points: Sequence[Point | None]
    colour: int
    line: bool = True
    dots: bool = False
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """An SVG element with what stands around it: (label, colour class) of each series."""

    title: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()


def chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    band: tuple[Sequence[Point], Sequence[Point]] | None = None,
    level: tuple[float, str] | None = None,
) -> Figure:
    """Lines over a grid.

    band   an area between two lines, in the colour of the first series
    level  a horizontal line with its name
    """
    points = [point for one in series for point in one.points if point is not None]
    points += [*band[0], *band[1]] if band else []
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + ([level[0]] if level else [])
    x_ticks, y_ticks = ticks(xs, 8), ticks(ys, 6)
    x = _Scale(x_ticks, LEFT, WIDTH - RIGHT)
    y = _Scale(y_ticks, HEIGHT - BOTTOM, TOP)
    parts = []
    for at, text in zip(y_ticks, labels(y_ticks), strict=True):
        parts.append(_line("grid", LEFT, y(at), WIDTH - RIGHT, y(at)))
        parts.append(_text("tick end", LEFT - 7, y(at) + 4, text))
    for at, text in zip(x_ticks, labels(x_ticks), strict=True):
        parts.append(_line("grid", x(at), HEIGHT - BOTTOM, x(at), HEIGHT - BOTTOM + 4))
        parts.append(_text("tick middle", x(at), HEIGHT - BOTTOM + 18, text))
    parts.append(_text("label middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label))
    if band:
        edge = [(x(a), y(b)) for a, b in [*band[0], *reversed(band[1])]]
        parts.append(Markup('<polygon class="band s0" points="{}"/>').format(_path(edge)))
    if level:
        parts.append(_line("level", LEFT, y(level[0]), WIDTH - RIGHT, y(level[0])))
        parts.append(_text("tick end", WIDTH - RIGHT - 2, y(level[0]) - 5, level[1]))
    for one in series:
        parts += _drawn(one, x, y)
    about = f"{title}: {y_label} over {x_label}"
    legend = [(one.label, _colour(one.colour)) for one in series]
    return Figure(f"{title}: {y_label}", _svg(WIDTH, HEIGHT, about, parts), legend)


def bars(title: str, rows: Sequence[tuple[str, int, int]], names: tuple[str, str]) -> Figure:
    """(label, whole, part) as bars under each other, the part inside the whole."""
    row, left, right = 34, 120, 215
    height, most = row * len(rows) + 4, max([whole for _, whole, _ in rows] + [1])
    unit = (WIDTH - left - right) / most
    parts = []
    for number, (label, whole, part) in enumerate(rows):
        top = number * row + 4
        parts.append(_text("tick end", left - 10, top + 17, label))
        for count, style in ((whole, "whole"), (part, "part")):
            parts.append(
                Markup('<rect class="{} s0" x="{}" y="{}" width="{}" height="{}"/>').format(
                    style, left, top, _number(count * unit), row - 10
                )
            )
        share = f" ({100 * part / whole:.0f} %)" if whole else ""
        text = f"{whole:,} {names[0]}, {part:,} {names[1]}{share}"
        parts.append(_text("tick", left + whole * unit + 8, top + 17, text))
    about = f"{title}: " + "; ".join(f"{label} {whole}, {part}" for label, whole, part in rows)
    return Figure(title, _svg(WIDTH, height, about, parts))


def ticks(values: Iterable[float], count: int) -> list[float]:
    """At most about `count` round numbers that span the values: multiples of 1, 2 or 5 × 10^n."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def labels(marks: Sequence[float]) -> list[str]:
    """The marks with as many decimals as their distance needs."""
    step = marks[1] - marks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 5 or max(map(abs, marks)) >= 1e7:
        return [f"{mark:g}" for mark in marks]
    return [f"{mark:,.{digits}f}" for mark in marks]


class _Scale:
    """A straight line from values to places on the page."""

    def __init__(self, marks: Sequence[float], start: float, end: float) -> None:
        self.low, self.start = marks[0], start
        self.slope = (end - start) / (marks[-1] - marks[0])

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


def _drawn(one: Series, x: _Scale, y: _Scale) -> list[Markup]:
    parts = []
    runs: list[list[Point]] = [[]]
    for point in one.points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append((x(point[0]), y(point[1])))
    if one.line:
        for run in runs:
            if len(run) > 1:
                parts.append(
                    Markup('<polyline class="curve {}" points="{}"/>').format(
                        _colour(one.colour), _path(run)
                    )
                )
    notes = list(one.notes)
    for run in runs:
        for place in run:
            note = notes.pop(0) if notes else ""
            if one.dots or len(run) == 1:  # one point alone would be an invisible line
                parts.append(
                    Markup('<circle class="dot {}" cx="{}" cy="{}" r="3">{}</circle>').format(
                        _colour(one.colour),
                        _number(place[0]),
                        _number(place[1]),
                        Markup("<title>{}</title>").format(note) if note else "",
                    )
                )
    return parts


def _colour(number: int) -> str:
    return f"s{number % COLOURS}"


def _svg(width: float, height: float, about: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, about, Markup("").join(parts)
    )


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    ends = [_number(value) for value in (x1, y1, x2, y2)]
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(style, *ends)


def _text(style: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        style, _number(x), _number(y), text
    )


def _path(points: Iterable[Point]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    """A tenth of a unit is finer than any screen, and short."""
    return f"{value:.1f}".removesuffix(".0")
