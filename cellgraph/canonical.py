"""The canonical key: one digest for one cell, whatever its names, the order of its lines and its
states, the way in which the rules of `rules.py` would write it, or dead code in it.

The key is the SHA-256 of a canonical text of the normal form (`normal.py`). Because the text
determines the normal form up to renaming, two different cells never share a key (short of a
collision of SHA-256). The opposite error can happen: arguments of a commutative op are ordered by
colour refinement, and where refinement cannot tell two arguments apart that are nevertheless not
interchangeable, one cell can get two keys. So can two forms of one function that no rule connects.
Such a cell is merely evaluated twice, unless its fingerprint is known (`fingerprints.py`).
Parameters are nominal: they lose their names, but two of them are never merged because they look
alike.

Widths are those of the whole cell, dead states included: where one decides on the width of what
lives (by adding x to itself, say), the live part would be another function on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cellgraph.graph import CONST, PARAM, STATE, CellGraph, Node, format_number
from cellgraph.normal import COMMUTES, FACTOR, MASK, Form, code, form_of, mix
from cellgraph.rewrites import Value

_STATE, _OUTPUT = code("state"), code("output")


@dataclass(frozen=True, slots=True)
class Canonical:
    """The text, and the names of parameters and states in the order in which it numbers them."""

    text: str
    params: tuple[str, ...]
    states: tuple[str, ...]


def live_states(nexts: Mapping[str, Node], output: Node) -> frozenset[str]:
    """The states that reach the output as it is written, directly or through the next values of
    others. For membership only."""
    seen: set[Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += (nexts[str(node.attr)],) if node.op == STATE else node.args
    return frozenset(str(node.attr) for node in seen if node.op == STATE)


def key(cell: CellGraph) -> str:
    """64 hexadecimal digits; equal for cells that differ in names, order, dead code or by rules."""
    return key_of(cell, *form_of(cell))


def key_of(cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> str:
    """The key of a cell whose normal form is known."""
    return hashlib.sha256(canonical(cell, form, image).text.encode()).hexdigest()


def canonical_text(cell: CellGraph) -> str:
    """One line a term, arguments as line numbers with their weights."""
    return canonical(cell, *form_of(cell)).text


def canonical(cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> Canonical:
    """The canonical text: a walk from the output, then from the next values of states in the order
    in which the walk meets them; parameters and named widths are numbered as they are met."""
    nexts = {s.name: image[s.next] for s in cell.states}
    width_of = {s.name: s.width for s in cell.states}
    declared = {p.name: p for p in cell.params}
    colour = _colours(cell, form, image)
    op, attr = form.op, form.attr
    widths = {"H": "H", "X": "X"}
    number: dict[int, int] = {}
    lines: list[str] = []
    params: list[str] = []
    states: list[str] = []
    roots = [image[cell.outputs[0]]]
    entered: set[int] = set()
    for _, root in roots:  # grows while it is walked
        stack = [root]
        while stack:
            t = stack.pop()
            below: Sequence[int] = form.args[t] if t >= 0 else ()
            if below:
                if t not in entered:
                    entered.add(t)
                    stack.append(~t)  # again, when its arguments have their numbers
                    if len(below) > 1 and op[t] in COMMUTES:
                        below = sorted(below, key=colour.__getitem__)
                    stack.extend(reversed(below))
                continue
            t = ~t if t < 0 else t
            if t in number:
                continue
            if op[t] == PARAM:
                param = declared[str(attr[t])]
                shape = " ".join(
                    [
                        widths.setdefault(w, f"W{len(widths) - 2}")
                        for w in (param.rows, param.cols)
                        if w
                    ]
                )
                lines.append(f"param{len(params)} {param.kind} {shape} {param.init}")
                params.append(param.name)
            elif op[t] == STATE:
                lines.append(f"state{len(states)}")
                states.append(str(attr[t]))
                roots.append(nexts[states[-1]])
            elif op[t] == CONST:
                lines.append(f"const {format_number(form.number(t))}")
            else:
                ports = [(number[a], w) for a, w in zip(form.args[t], form.weights[t], strict=True)]
                if op[t] in COMMUTES:
                    ports.sort()
                lines.append(" ".join([op[t], *[f"{format_number(w)}*{n}" for n, w in ports]]))
            number[t] = len(number)
    sizes = " ".join(widths.setdefault(width_of[s], f"W{len(widths) - 2}") for s in states)
    ends = " ".join(f"{format_number(k)}*{number[t]}" for k, t in roots)
    return Canonical(
        "\n".join([*lines, f"states {sizes}", f"roots {ends}"]), (*params,), (*states,)
    )


def state_colours(cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> dict[str, int]:
    """A number without regard to names for every live state; equal where refinement sees no
    difference."""
    colour = _colours(cell, form, image)
    return {str(form.attr[t]): c for t, c in colour.items() if form.op[t] == STATE}


def _colours(cell: CellGraph, form: Form, image: Mapping[Node, Value]) -> dict[int, int]:
    """Colour refinement with weighted ports over the live terms, until the number of classes stands
    still. Every round carries what is known all the way down and all the way up."""
    if form.colour:
        return form.colour
    end = image[cell.outputs[0]]
    nexts = {s.name: image[s.next] for s in cell.states}
    alive = form.alive(end[1], nexts)
    label = _labels(cell)
    colour = form.shape.copy()
    edges: list[tuple[int, list[tuple[int, int]]]] = []
    leaves: list[int] = []
    following: list[tuple[int, int, int]] = []  # states: the leaf, its next term and factor
    for t in alive:
        op = form.op[t]
        if form.args[t]:
            edges.append((t, list(zip(form.args[t], _ports(op, form.weights[t]), strict=True))))
            continue
        leaves.append(t)
        if op in (STATE, PARAM):
            name = str(form.attr[t])
            colour[t] = mix(colour[t], label[name])
            if op == STATE:
                following.append((t, nexts[name][1], code(nexts[name][0])))
    colour[end[1]] = mix(colour[end[1]], mix(_OUTPUT, code(end[0])))
    classes = len({colour[t] for t in alive})
    while classes < len(alive):
        _refine(colour, edges, leaves, following)
        refined = len({colour[t] for t in alive})
        if refined == classes:
            break
        classes = refined
    form.colour = {t: colour[t] for t in alive}
    return form.colour


def _refine(
    colour: list[int],
    edges: Sequence[tuple[int, Sequence[tuple[int, int]]]],
    leaves: Sequence[int],
    following: Sequence[tuple[int, int, int]],
) -> None:
    """One round: all the way down the graph, and all the way up again."""
    # All at once: the next value of a state may be another state.
    for t, own in [(t, mix(colour[t], mix(colour[n], factor))) for t, n, factor in following]:
        colour[t] = own
    for t, ports in edges:  # arguments first
        own = 0
        for a, port in ports:  # `mix`, written out: most of the time goes here
            part = ((colour[a] ^ port) * FACTOR + port) & MASK
            own += part ^ (part >> 29)
        colour[t] = mix(colour[t], own & MASK)
    above = [0] * len(colour)
    for t, n, factor in following:
        above[n] += mix(mix(_STATE, colour[t]), factor)
    for t, ports in reversed(edges):
        own = colour[t] = mix(colour[t], above[t] & MASK)
        for a, port in ports:
            part = ((own ^ port) * FACTOR + port) & MASK
            above[a] += part ^ (part >> 29)
    for t in leaves:
        colour[t] = mix(colour[t], above[t] & MASK)


@lru_cache(maxsize=4096)
def _ports(op: str, weights: tuple[float, ...]) -> tuple[int, ...]:
    """A colour for each argument's place."""
    ports = map(code, weights)
    return (*ports,) if op in COMMUTES else tuple([mix(port, i) for i, port in enumerate(ports)])


def unambiguous(form: Form) -> bool:
    """Has the text of this form been found without a choice between terms that look alike? Then
    another cell of the same normal form has the same key."""
    return 0 < len(form.colour) == len(set(form.colour.values()))


def _labels(cell: CellGraph) -> dict[str, int]:
    """What is known of states and parameters without their names. A width is a bound name as well:
    only H, X and whether it is another one count."""
    known = {"H": "H", "X": "X", None: ""}
    label = {s.name: code(f"state {known.get(s.width, '?')}") for s in cell.states}
    for p in cell.params:
        shape = f"{known.get(p.rows, '?')} {known.get(p.cols, '?')}"
        label[p.name] = code(f"{p.kind} {shape} {p.init}")
    return label
