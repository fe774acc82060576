"""A cell as an SVG picture: one step from top to bottom, readable in light and in dark.

All text goes through `_escaped`; nothing that a cell is called can become markup. The colours are
those of the pages of `reports`, in rules that reach this picture alone.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from cellgraph.exporters.drawing import Box, drawing
from cellgraph.exporters.layers import HEIGHT, Layout, Line, Point, layout
from cellgraph.graph import CellGraph

_STYLE = """\
#ID { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
#ID .back { fill: #ffffff; }
#ID text { fill: #1b1f24; text-anchor: middle; }
#ID .letter { fill: #59636e; font-size: 10px; font-style: italic; text-anchor: end; }
#ID rect { stroke-width: 1.2; }
#ID .input rect, #ID .state rect { fill: #dbe9fb; stroke: #0b63c5; }
#ID .matrix rect { fill: #fce8d9; stroke: #b9500f; }
#ID .op rect { fill: #f5f7f9; stroke: #59636e; }
#ID .next rect, #ID .output rect { fill: #dff1e0; stroke: #24762b; }
#ID .output rect { stroke-width: 2.4; }
#ID .line { fill: none; stroke: #59636e; stroke-width: 1.2; }
#ID .dot { fill: #59636e; }
@media (prefers-color-scheme: dark) {
  #ID .back { fill: #14171a; }
  #ID text { fill: #e4e7ea; }
  #ID .letter { fill: #9ba5af; }
  #ID .input rect, #ID .state rect { fill: #12304f; stroke: #62aefc; }
  #ID .matrix rect { fill: #432510; stroke: #fb9b5b; }
  #ID .op rect { fill: #1d2226; stroke: #9ba5af; }
  #ID .next rect, #ID .output rect { fill: #15361a; stroke: #7ccf80; }
  #ID .line { stroke: #9ba5af; }
  #ID .dot { fill: #9ba5af; }
}"""


def render(cell: CellGraph) -> str:
    """The picture as text. `cell` must be as `parse` gives it. Raises `CellError` for one that is
    too large for a picture."""
    drawn = drawing(cell)
    placed = layout(drawn)
    name = f"cell-{cell.name}"  # an identifier: nothing in it needs escaping
    width, height = _number(placed.width), _number(placed.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" id="{name}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">',
        f'<title id="{name}-title">One step of the recurrent cell {cell.name}</title>',
        f'<desc id="{name}-desc">{_escaped(str(cell).rstrip())}</desc>',
        f"<style>\n{_STYLE.replace('ID', name)}\n</style>",
        f'<defs><marker id="{name}-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="dot" d="M0 0.5L8 4L0 7.5z"/></marker></defs>',
        f'<rect class="back" width="{width}" height="{height}"/>',
        *_wires(placed, name),
        *(_box(box, *place) for box, place in zip(drawn.boxes, _places(placed), strict=True)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _places(placed: Layout) -> list[tuple[Point, float]]:
    return list(zip(placed.centres, placed.widths, strict=True))


def _wires(placed: Layout, name: str) -> list[str]:
    """Lines first, so that boxes lie above them."""
    drawn = [
        f'<path class="line" d="M{_point(top)}L{_point(bottom)}"/>' for top, bottom in placed.passes
    ]
    for line in placed.lines:
        head = "" if line.head is None else f' marker-end="url(#{name}-head)"'
        drawn.append(f'<path class="line" d="{_curve(line)}"{head}/>')
        if line.letter:
            x, y = line.end
            place = f'x="{_number(x - 5)}" y="{_number(y - 8)}"'
            drawn.append(f'<text class="letter" {place}>{line.letter}</text>')
    drawn += [
        f'<circle class="dot" cx="{_number(x)}" cy="{_number(y)}" r="2.2"/>'
        for x, y in placed.forks
    ]
    return drawn


def _curve(line: Line) -> str:
    """Down, across, and down again."""
    (x, y), (to_x, to_y) = line.start, line.end
    middle = (y + to_y) / 2
    return (
        f"M{_point((x, y))}C{_point((x, middle))} {_point((to_x, middle))} {_point((to_x, to_y))}"
    )


def _box(box: Box, centre: Point, width: float) -> str:
    x, y = centre
    round_ends = HEIGHT / 2 if box.kind not in ("op", "matrix") else 4
    place = f'x="{_number(x - width / 2)}" y="{_number(y - HEIGHT / 2)}"'
    size = f'width="{_number(width)}" height="{_number(HEIGHT)}" rx="{_number(round_ends)}"'
    return (
        f'<g class="{box.kind}"><title>{_escaped(box.label())}</title><rect {place} {size}/>'
        f'<text x="{_number(x)}" y="{_number(y + 4)}">{_escaped(box.short())}</text></g>'
    )


def _point(point: Point) -> str:
    return f"{_number(point[0])} {_number(point[1])}"


def _number(value: float) -> str:
    """A tenth of a unit is finer than any screen, and short."""
    return f"{value:.1f}".removesuffix(".0")


def _escaped(text: str) -> str:
    """Text of an element. What XML cannot hold, and what turns its reader's line around, is '?'."""
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
