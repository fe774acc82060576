r"""A cell as a LaTeX document: its equations in `align`, and a TikZ picture of one step.

It compiles as it is with amsmath and TikZ alone. What stands between \begin{document} and
\end{document} can be pasted into another document that loads the same packages.
"""

from __future__ import annotations

from cellgraph.exporters.drawing import HOLE, LONGEST, Box, drawing
from cellgraph.exporters.layers import HEIGHT, Layout, Point, layout
from cellgraph.exporters.mathematics import Formulas, escaped, number, symbol
from cellgraph.exporters.source import printable
from cellgraph.graph import CellGraph, Init
from cellgraph.ops import OPS

#: Points of TeX for a unit of length of the layout, and the room on a page.
UNIT = 0.75
ROOM = 450.0, 600.0
DOT = r"\bullet"  #: what stands for an argument

_TOP = r"""
\documentclass{article}
\usepackage[a4paper, margin=2.2cm]{geometry}
\usepackage{amsmath}
\usepackage{tikz}
\usetikzlibrary{arrows.meta}
\pagestyle{empty}
\setlength{\parindent}{0pt}
\allowdisplaybreaks
\begin{document}
""".strip()

_STYLES = r"""
  x=1pt, y=-1pt,
  every node/.style={font=\small, inner sep=1pt, outer sep=0pt, scale=SCALE},
  box/.style={draw, line width=0.5pt, minimum height=HEIGHTpt},
  start/.style={box, rounded corners=8pt, draw=blue!60!black, fill=blue!10},
  product/.style={box, rounded corners=2pt, draw=orange!70!black, fill=orange!15},
  op/.style={box, rounded corners=2pt, draw=black!60, fill=black!4},
  end/.style={box, rounded corners=8pt, draw=green!45!black, fill=green!12},
  emitted/.style={end, line width=1pt},
  line/.style={draw=black!60, line width=0.5pt},
  arrow/.style={line, -{Stealth[length=4pt]}},
  letter/.style={font=\scriptsize\itshape, text=black!60, anchor=south east},
""".strip("\n")

_LOOKS = {
    "input": "start",
    "state": "start",
    "matrix": "product",
    "op": "op",
    "next": "end",
    "output": "emitted",
}


def render(cell: CellGraph) -> str:
    """The document as text. `cell` must be as `parse` gives it. Raises `CellError` for one that is
    too large for a picture."""
    formulas = Formulas(cell)
    lines = [f"% {printable(line)}".rstrip() for line in str(cell).splitlines()]
    lines += [_TOP, *_introduction(cell, formulas), *_align(formulas), *_remarks(cell), ""]
    lines += ["", r"\begin{center}", *_picture(cell, formulas), r"\end{center}", r"\end{document}"]
    return "\n".join(lines) + "\n"


# -- equations -------------------------------------------------------------------------------------


def _introduction(cell: CellGraph, formulas: Formulas) -> list[str]:
    states = ", ".join(f"${symbol(s.name)}$ of width ${symbol(s.width)}$" for s in cell.states)
    output = cell.outputs[0]
    emitted = next((formulas.next(s.name) for s in cell.states if s.next is output), None)
    if emitted is None:
        names = {node: name for name, node in reversed(cell.names)}
        label = formulas.value(names[output], output) if output in names else None
        emitted = label or formulas.expression(output, {})
    several = "States" if len(cell.states) > 1 else "State"
    return [
        rf"\textbf{{\texttt{{{escaped(cell.name)}}}}}, one step. Input: $x_{{t}}$. "
        rf"{several}: {states}. Output: ${emitted}$.",
    ]


def _align(formulas: Formulas) -> list[str]:
    rows = []
    for left, right in formulas.equations():
        rows += [f"{left} &= {right[0]}", *(rf"&\quad {line}" for line in right[1:])]
        rows[-len(right) : -1] = [rf"{row} \notag" for row in rows[-len(right) : -1]]
    return [r"\begin{align}", " \\\\\n".join(f"  {row}" for row in rows), r"\end{align}"]


def _remarks(cell: CellGraph) -> list[str]:
    """What the symbols of functions mean that are not their names, and how parameters start."""
    used = [op for op in OPS.values() if any(node.op == op.name for node in cell.nodes)]
    meant = [
        rf"${op.latex.format(DOT, DOT)}$ is \texttt{{{escaped(op.name)}}}"
        for op in used
        if op.infix is None and _plain(op.name) not in _plain(op.latex)
    ]
    if any(op.powers == (1, 1) for op in used):
        meant.append(r"$\odot$ multiplies elementwise")
    starts = [f"${symbol(p.name)} = {_start(p.init)}$" for p in cell.params if p.init is not None]
    lines = [f"Here {', '.join(meant)}."] if meant else []
    return lines + ([f"At the start of training, {', '.join(starts)}."] if starts else [])


def _plain(text: str) -> str:
    return text.lower().replace("_", "")


def _start(init: Init) -> str:
    value = number(init.value)
    return value if init.kind == "constant" else rf"{value}\,I + \text{{noise}}"


# -- the picture -----------------------------------------------------------------------------------


def _picture(cell: CellGraph, formulas: Formulas) -> list[str]:
    drawn = drawing(cell)
    placed = layout(drawn)
    scale = min(1.0, ROOM[0] / (UNIT * placed.width), ROOM[1] / (UNIT * placed.height))
    styles = _STYLES.replace("HEIGHT", f"{HEIGHT * UNIT:g}").replace("SCALE", f"{scale:.3f}")
    # Coordinates are points of the page: TeX knows no length above 16383 points.
    lines = [r"\begin{tikzpicture}[", styles, "]", *_wires(placed, UNIT * scale)]
    for i, box in enumerate(drawn.boxes):
        width = f"minimum width={placed.widths[i] * UNIT:.1f}pt"
        place = _point(placed.centres[i], UNIT * scale)
        look = _LOOKS[box.kind]
        lines.append(rf"\node[{look}, {width}] at {place} {{{_label(box, formulas)}}};")
    return [*lines, r"\end{tikzpicture}"]


def _wires(placed: Layout, unit: float) -> list[str]:
    """Lines first, so that boxes lie above them."""
    drawn = [rf"\draw[line] {_point(a, unit)} -- {_point(b, unit)};" for a, b in placed.passes]
    for line in placed.lines:
        middle = (line.start[1] + line.end[1]) / 2
        bends = (line.start[0], middle), (line.end[0], middle)
        start, first, second, end = (_point(p, unit) for p in (line.start, *bends, line.end))
        look = "line" if line.head is None else "arrow"
        drawn.append(rf"\draw[{look}] {start} .. controls {first} and {second} .. {end};")
        if line.letter:
            place = _point((line.end[0] - 3, line.end[1] - 4), unit)
            drawn.append(rf"\node[letter] at {place} {{{line.letter}}};")
    forks = [_point(fork, unit) for fork in placed.forks]
    return drawn + [rf"\fill[black!60] {fork} circle[radius=1.2pt];" for fork in forks]


def _label(box: Box, formulas: Formulas) -> str:
    if len(box.label()) > LONGEST:
        shown = escaped(box.short()).replace(HOLE, f"${DOT}$").replace("…", r"\ldots")
        return rf"\texttt{{{shown}}}"
    if box.kind in ("next", "output"):
        name = formulas.next(box.name.removesuffix("'")) if box.name.endswith("'") else ""
        held = formulas.expression(box.node, {}) if box.node is not None else ""
        shown = " = ".join(part for part in (name, held) if part)
        parts = f"${shown}$" if shown else "", "output" if box.kind == "output" else ""
        return " ".join(part for part in parts if part)
    marks = {
        hole: DOT if mark == HOLE else mark for hole, mark in zip(box.holes, box.marks, strict=True)
    }
    text = formulas.expression(box.held, marks, top=True)
    return f"${formulas.value(box.name, box.held)} = {text}$" if box.name else f"${text}$"


def _point(point: Point, unit: float) -> str:
    return f"({point[0] * unit:.1f},{point[1] * unit:.1f})"
