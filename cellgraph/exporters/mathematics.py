"""Cells as formulas of LaTeX: names as symbols, expressions by the LaTeX column of the op table.

What is computed in a step has the index t, a state that was handed over t - 1; parameters have
none. Needs amsmath. The document around the formulas is `latex.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cellgraph.graph import (
    CONST,
    INPUT,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    depends_on,
    format_number,
)
from cellgraph.ops import ATOM, MATRIX, OPS, SUM, UNARY
from cellgraph.printing import named

#: Glyphs of a right side after which it goes on in the next line.
LONGEST = 60
#: Growing brackets in one another; TeX has 255 levels of groups for all that nests.
MOST_BRACKETS = 30

# fmt: off
_GREEK = frozenset((  # for membership only
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda",
    "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega",
))
# fmt: on

#: What one op writes: text, or an argument that must bind at least so tightly.
_Piece = str | tuple[Node, int]


def symbol(name: str, time: str = "") -> str:
    r"""A name as a symbol: `W_r` as W_{r}, `alpha` as \alpha, any other word in text italics.
    `time` joins the index. No two names give one symbol."""
    head, *indices = name.split("_")
    if not head or not all(indices):  # underscores that separate nothing
        head, indices = name, []
    if head in _GREEK:
        shown = rf"\{head}"
    else:
        shown = head if len(head) == 1 else rf"\mathit{{{escaped(head)}}}"
    shown_indices = [_index(index) for index in indices] + ([time] if time else [])
    return f"{shown}_{{{','.join(shown_indices)}}}" if shown_indices else shown


def _index(text: str) -> str:
    # An upright t, so that the parameter `h_t` is not taken for the state h at time t.
    italic = text.isdecimal() or (len(text) == 1 and text != "t")
    return text if italic else rf"\mathrm{{{text}}}"


def escaped(name: str) -> str:
    r"""An identifier within LaTeX: `_` is all in it that TeX would take for something else."""
    return name.replace("_", r"\_")


def _delimited(latex: str) -> bool:
    """Does an infix op put its arguments into braces of its own, as a fraction does?"""
    return "{{{0}}}" in latex


class Formulas:
    """The symbols of one cell, and its expressions in them."""

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell
        self.moving = depends_on(cell.roots, lambda leaf: leaf.op in (INPUT, STATE))
        self.scalars = {p.name for p in cell.params if p.kind == "scalar"}

    def value(self, name: str, node: Node) -> str:
        """What the text calls a value."""
        return symbol(name, "t" if self.moving[node] else "")

    def next(self, state: str) -> str:
        """The next value of a state."""
        return symbol(state, "t")

    def leaf(self, node: Node) -> str:
        """x, a state, a parameter or a number."""
        if node.op == CONST:
            return number(float(node.attr))  # type: ignore[arg-type]
        time = {INPUT: "t", STATE: "t-1"}.get(node.op, "")
        written = symbol(str(node.attr), time)
        if node.attr in self.cell.skews:
            return rf"\left({written} - {written}^{{\top}}\right)"
        return written

    def single(self, node: Node) -> bool:
        """Is it one number, not a vector of them?"""
        return node.op == CONST or (node.op == PARAM and node.attr in self.scalars)

    def equations(self) -> list[tuple[str, list[str]]]:
        """(left side, the lines of its right side), in the order of the text."""
        order = named(self.cell)
        nexts = {f"{state.name}'": state for state in self.cell.states}
        labels = {
            node: self.next(nexts[name].name) if name in nexts else self.value(name, node)
            for name, node in order
        }
        found = [(labels[node], self.lines(node, labels)) for _, node in order]
        said = [name for name, _ in order]
        for name, state in nexts.items():
            if name not in said:  # `h' = g`, or the next value is a leaf
                found.append((self.next(state.name), [self.expression(state.next, labels)]))
        return found

    def lines(self, root: Node, labels: Mapping[Node, str]) -> list[str]:
        """An expression without its own label, broken before terms of its outermost sum where it is
        long."""
        sums: list[Node] = []
        node = root
        while _is_sum(node) and (node is root or node not in labels):
            sums.append(node)
            node = node.args[0]
        found = [self.expression(node, labels, top=not sums)]
        for outer in reversed(sums):
            rest = self._written(self._layout(outer)[1:], labels)  # all but the first argument
            if _glyphs(found[-1] + rest) > LONGEST:
                found.append("")
            found[-1] += rest
        return [line.strip() for line in found]

    def expression(self, root: Node, labels: Mapping[Node, str], *, top: bool = False) -> str:
        """An expression; what has a label stands by it, but not the root where it is the `top`."""
        return self._written(self._layout(root) if top else [(root, SUM)], labels)

    def _written(self, pieces: Sequence[_Piece], labels: Mapping[Node, str]) -> str:
        text: list[str] = []
        todo: list[_Piece] = list(reversed(pieces))
        while todo:  # iterative: a cell can be deeper than Python's stack
            piece = todo.pop()
            if isinstance(piece, str):
                text.append(piece)
            elif piece[0] in labels:
                text.append(labels[piece[0]])
            else:
                inner = self._layout(piece[0])
                if _binds(piece[0]) < piece[1]:
                    inner = [r"\left(", *inner, r"\right)"]
                todo += reversed(inner)
        return _shallow("".join(text))

    def _layout(self, node: Node) -> list[_Piece]:
        """How one op is written."""
        if node.is_leaf:
            return [self.leaf(node)]
        if node.op == MATMUL:
            return [(node.args[0], ATOM), r"\,", (node.args[1], MATRIX)]
        op = OPS[node.op]
        if op.infix is None or _delimited(op.latex):
            least = [SUM, SUM]
        else:
            least = [MATRIX] if op.arity == 1 else [op.binds, op.binds + 1]
        text = op.latex.format("\0" + "0\0", "\0" + "1\0")
        if op.powers == (1, 1) and any(map(self.single, node.args)):
            text = text.replace(r"\odot", r"\cdot")  # no elementwise product
        pieces: list[_Piece] = [
            (node.args[int(part)], least[int(part)]) if i % 2 else part
            for i, part in enumerate(text.split("\0"))
        ]
        return [piece for piece in pieces if piece]


def _is_sum(node: Node) -> bool:
    return node.op in OPS and len(OPS[node.op].signs or ()) == 2


def _binds(node: Node) -> int:
    """How tightly it binds on paper, where no sign follows another without brackets between."""
    if node.op == CONST:
        return SUM if str(node.attr).startswith("-") else ATOM
    if node.is_leaf:
        return ATOM
    if node.op == MATMUL:
        return MATRIX
    op = OPS[node.op]
    if op.infix is None or _delimited(op.latex):
        return ATOM
    return SUM if op.binds == UNARY else op.binds


def number(value: float) -> str:
    """A number of a cell."""
    digits, e, exponent = format_number(value).partition("e")
    if not e:
        return digits
    power = f"10^{{{int(exponent)}}}"
    return power if digits == "1" else rf"{digits} \times {power}"


def _glyphs(text: str) -> int:
    """About how many characters are seen."""
    return len(re.sub(r"[{}_^\s]", "", re.sub(r"\\[a-zA-Z]+|\\.", "x", text)))


def _shallow(text: str) -> str:
    """Brackets that grow with what they hold, unless too many stand in one another for TeX."""
    depth = deepest = 0
    for mark in re.findall(r"\\(left|right)", text):
        depth += 1 if mark == "left" else -1
        deepest = max(deepest, depth)
    return re.sub(r"\\(left|right)", "", text) if deepest > MOST_BRACKETS else text
