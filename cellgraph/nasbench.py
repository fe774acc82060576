"""Recipes of NAS-Bench-NLP (Klyuchnikov et al. 2020, arXiv 2006.07116): what they mean, and reading
them.

A recipe is a mapping (in a file: JSON) from the names of nodes to `{"op": …, "input": [names]}`.
Nobody computes `x` and `h_prev_i`; `h_new_i` is the next value of `h_prev_i`, and `h_new_0` is what
the layer emits. What the released code does, and what cells read here therefore do:

* `linear` has a matrix for each of its inputs and one bias, `W1 @ a + W2 @ b + … + bias`; only a
  linear has parameters, and none is shared.
* `blend` of a, b, c is `a * b + (1 - a) * c`; the leaky ReLU has torch's slope, 0.01.
* Every node is as wide as the states, which all have one width. So x may stand outside a linear
  only where it is as wide as the cell, as anywhere in this notation.

Sums and products have two inputs: the released code fails where there are more. The way back, from
a cell to a recipe, is `recipes.py`; random recipes are `sampling.py`. A file in JSON may hold a
graph in node-link form instead, which `node_link.py` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain, count
from typing import Any

from cellgraph import node_link
from cellgraph.errors import CellError, closest
from cellgraph.graph import (
    CONST,
    INPUT,
    LONGEST_NAME,
    MATMUL,
    PARAM,
    STATE,
    CellGraph,
    Node,
    is_name,
)
from cellgraph.notation import MAX_TEXT
from cellgraph.ops import INFIX
from cellgraph.widths import MAX_NODES, build

Recipe = dict[str, dict[str, Any]]

LINEAR, BLEND, PRODUCT, SUM = "linear", "blend", "elementwise_prod", "elementwise_sum"
#: Ops of a recipe that are one function of the op table, by its name there.
ACTIVATIONS = {
    "activation_tanh": "tanh",
    "activation_sigm": "sigmoid",
    "activation_leaky_relu": "leaky_relu",
}
ARITY: dict[str, int | None] = {  # None: one or more
    LINEAR: None,
    BLEND: 3,
    PRODUCT: 2,
    SUM: 2,
    **dict.fromkeys(ACTIVATIONS, 1),
}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
PORT = re.compile(r"h_(prev|new)_([0-9]+)", re.ASCII)
_ADD, _SUBTRACT, _MULTIPLY = (INFIX[sign, 2].name for sign in "+-*")


def port(name: str) -> tuple[str, int] | None:
    """("prev" or "new", i) for `h_prev_i` and `h_new_i`; None for any other name, such as
    `h_new_1_part1`. Raises `CellError` for a number with a leading zero."""
    match = PORT.fullmatch(name)
    if match is None:
        return None
    side, digits = match.groups()
    if digits != "0" and digits.startswith("0"):
        raise CellError(f"{shown(name)} has a number with zeros before it, expected h_{side}_i")
    # Longer ones are none of ours, and Python refuses to read numbers of thousands of digits.
    return side, int(digits) if len(digits) < 10 else 10**9


def loads(text: str, name: str) -> CellGraph:
    """The cell of a text in JSON: a recipe, or a graph as `node_link.py` writes it, which says so.
    Raises `CellError` with the line where it is no JSON."""
    document = _document(text)
    if node_link.marked(document):
        return node_link.read(document)
    if len(text) > MAX_TEXT:
        raise CellError(f"a text of {len(text)} characters, expected at most {MAX_TEXT}")
    return from_recipe(document, name)


def _document(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        lines = text.split("\n")
        raise CellError(
            f"{error.msg}, expected a recipe or a graph in JSON",
            line=error.lineno,
            column=error.colno - 1,
            source=lines[error.lineno - 1],
        ) from None
    except RecursionError:
        raise CellError(
            "brackets are nested too deeply, expected a recipe or a graph in JSON"
        ) from None
    except CellError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise CellError(f"{error}, expected a recipe or a graph in JSON") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose names stands twice: Python would keep the last."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise CellError(f"{shown(name)} stands twice, expected once")
        made[name] = value
    return made


def from_recipe(recipe: Mapping[str, Any], name: str = "recipe") -> CellGraph:
    """The cell of a recipe of NAS-Bench-NLP.

    The state of `h_prev_i` and `h_new_i` is called `h_i`. Nodes keep their names where the notation
    has no other use for them; a linear `f` has the matrices `W_f` (of x, if x is among its inputs),
    `U_f`, `V_f`, … and the bias `b_f`. Nodes that no `h_new_i` needs are checked and then left out.

    Raises `CellError` for anything that the released code would not run as a cell: unknown ops and
    nodes, wrong numbers of inputs, cycles, `h_new` and `h_prev` that do not belong together.
    """
    states = _checked(recipe)
    reader = _Reader(recipe, states)
    for node in _ordered(recipe):
        reader.read(node)
    nexts = [reader.made[f"h_new_{i}"] for i in range(states)]
    cell = build(
        name,
        [(reader.states[i], "H", node) for i, node in enumerate(nexts)],
        nexts[0],
        names=reader.names,
    )
    read = {str(node.attr) for node in cell.nodes if node.op == STATE}
    for i, state in enumerate(reader.states):
        if state not in read:
            raise CellError(
                f"h_new_{i} is there and h_prev_{i} is not read, expected both or neither"
            )
    return cell


def _checked(recipe: object) -> int:
    """The number of states of a recipe whose every node is well formed."""
    if not isinstance(recipe, Mapping):
        length = f" of {len(recipe)}" if isinstance(recipe, list) else ""
        raise CellError(
            f"a {type(recipe).__name__}{length}, expected one recipe: a mapping from names of "
            "nodes to op and input"
        )
    if len(recipe) > MAX_NODES:
        raise CellError(f"a recipe of {len(recipe)} nodes, expected at most {MAX_NODES}")
    edges = 0
    for name, node in recipe.items():
        edges += len(_checked_node(name, node))
    if edges > 3 * MAX_NODES:
        raise CellError(f"a recipe with {edges} inputs, expected at most {3 * MAX_NODES}")
    numbers = {found[1] for name in recipe if (found := port(name)) and found[0] == "new"}
    states = len(numbers)
    for i in range(max(states, 1)):
        if i not in numbers:
            rest = f", but h_new_{max(numbers)}" if numbers else ""
            raise CellError(f"there is no node h_new_{i}{rest}, expected h_new_0, h_new_1, …")
    for name, node in recipe.items():
        for argument in node["input"]:
            _check_reference(name, argument, recipe, states)
    return states


def _checked_node(name: object, node: Any) -> Sequence[str]:
    """The inputs of a node, which may name anything so far."""
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name) or len(name) > LONGEST_NAME:
        raise CellError(
            f"node {shown(name)}, expected a name of at most {LONGEST_NAME} letters, digits and _"
        )
    found = port(name)
    if name == "x" or (found and found[0] == "prev"):
        raise CellError(f"node {name} is what a recipe is given, expected another name")
    if not isinstance(node, Mapping) or list(node) not in (["op", "input"], ["input", "op"]):
        keys = [shown(key) for key in node][:4] if isinstance(node, Mapping) else [shown(node)]
        given = ", ".join(keys)
        raise CellError(f"node {name} has {given or 'nothing'}, expected op and input")
    op, inputs = node["op"], node["input"]
    if not isinstance(op, str) or op not in ARITY:
        near = closest(op, ARITY) if isinstance(op, str) else ""
        raise CellError(
            f"node {name} has the op {shown(op)}{near}, expected one of {', '.join(ARITY)}"
        )
    if not isinstance(inputs, list | tuple):
        raise CellError(f"the input of node {name} is {shown(inputs)}, expected a list of names")
    arity = ARITY[op]
    if len(inputs) != arity and (arity is not None or not inputs):
        raise CellError(
            f"node {name} ({op}) has {len(inputs)} inputs, expected {arity or 'at least 1'}"
        )
    return inputs


def _check_reference(name: str, argument: object, recipe: Mapping[str, Any], states: int) -> None:
    if not isinstance(argument, str):
        raise CellError(f"node {name} reads {shown(argument)}, expected the name of a node")
    found = port(argument)
    if found and found[0] == "prev" and found[1] >= states:
        raise CellError(
            f"node {name} reads {shown(argument)}, but h_new_{states - 1} is the last, "
            "expected an h_new for every h_prev"
        )
    if argument not in recipe and argument != "x" and not (found and found[0] == "prev"):
        known = chain(recipe, ["x"], (f"h_prev_{i}" for i in range(states)))
        raise CellError(
            f"node {name} reads {shown(argument)}{closest(argument, known)}, "
            "expected the name of a node, x or h_prev_i"
        )


def _ordered(recipe: Mapping[str, Any]) -> list[str]:
    """The nodes, arguments first, as near to the order of the recipe as that allows."""
    order: dict[str, None] = {}
    for root in recipe:
        path: dict[str, Iterator[str]] = {}  # from the root down, each with the inputs still to see
        if root not in order:
            path[root] = iter(recipe[root]["input"])
        while path:  # iterative: a hostile recipe can be deeper than Python's stack
            name = next(reversed(path))
            for argument in path[name]:
                if argument in path:
                    walk = [*path, argument]
                    cycle = walk[walk.index(argument) :]
                    few = cycle if len(cycle) < 8 else [*cycle[:4], "…", *cycle[-2:]]
                    raise CellError(
                        f"the recipe has a cycle, {' needs '.join(few)}, "
                        "expected recurrence to go through h_prev_i only"
                    )
                if argument in recipe and argument not in order:
                    path[argument] = iter(recipe[argument]["input"])
                    break
            else:
                order[name] = None
                del path[name]
    return list(order)


def shown(value: object) -> str:
    """Any value of a hostile recipe in a message of one line; of what is no text, the type alone,
    because its repr can be endless."""
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    return repr(value) if len(value) <= 60 else f"{value[:60]!r}…"


class _Reader:
    """Recipe nodes -> nodes of a cell, with names that are free in it."""

    def __init__(self, recipe: Mapping[str, Any], states: int) -> None:
        self.recipe = recipe
        self.states = [f"h_{i}" for i in range(states)]
        self.made: dict[str, Node] = {"x": Node(INPUT, (), "x")}
        self.made |= {f"h_prev_{i}": Node(STATE, (), s) for i, s in enumerate(self.states)}
        self.names: list[tuple[str, Node]] = []
        self.taken = set(self.states)  # membership only, never iterated
        # The names of nodes go before those of parameters.
        self.label = {
            name: f"{self.states[found[1]]}'" if (found := port(name)) else self._fresh(name)
            for name in recipe
        }

    def read(self, name: str) -> None:
        """Make the node of that name, whose inputs are made."""
        op = self.recipe[name]["op"]
        inputs = [self.made[argument] for argument in self.recipe[name]["input"]]
        if op == LINEAR:
            node = self._linear(self.label[name].rstrip("'"), inputs)
        elif op == BLEND:
            gate, kept, new = inputs
            rest = Node(_SUBTRACT, (Node(CONST, (), 1.0), gate))
            node = Node(_ADD, (Node(_MULTIPLY, (gate, kept)), Node(_MULTIPLY, (rest, new))))
        elif op in ACTIVATIONS:
            node = Node(ACTIVATIONS[op], (inputs[0],))
        else:
            node = Node(_ADD if op == SUM else _MULTIPLY, (inputs[0], inputs[1]))
        self.made[name] = node
        self.names.append((self.label[name], node))

    def _linear(self, label: str, inputs: Sequence[Node]) -> Node:
        """The matrices times the inputs in their order, and the bias."""
        first = next((i for i, node in enumerate(inputs) if node.op == INPUT), 0)
        letters = ["U", "V", *(f"V{i}" for i in range(2, len(inputs)))]
        letters.insert(first, "W")
        terms = [
            Node(MATMUL, (Node(PARAM, (), self._fresh(f"{letter}_{label}")), node))
            for letter, node in zip(letters, inputs, strict=False)
        ]
        terms.append(Node(PARAM, (), self._fresh(f"b_{label}")))
        return reduce(lambda a, b: Node(_ADD, (a, b)), terms)

    def _fresh(self, name: str) -> str:
        """The name itself, if it is one of the notation and free."""
        stem = name[: LONGEST_NAME - 5]  # room for a number
        found = next(
            n
            for n in chain([name], (f"{stem}_{i}" for i in count(1)))
            if is_name(n) and n not in self.taken
        )
        self.taken.add(found)
        return found
