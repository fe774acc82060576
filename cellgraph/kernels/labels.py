"""Names for the values of a plan, in the words of the cell's equations."""

from __future__ import annotations

from collections.abc import Iterable

from cellgraph.graph import Node, topological
from cellgraph.printing import render
from cellgraph.stages import Core

LONGEST = 24  #: nodes of an expression that is written out
LONGEST_SUM = 120  #: characters of a sum of products


def labels(core: Core) -> dict[Node, str]:
    """What to call the leaves and the named values of a core; a block is its sum in brackets."""
    inner: dict[Node, str] = {}
    number_long(core.prelude.values(), inner)
    label = {leaf: f"({render(node, inner)})" for leaf, node in core.prelude.items()}
    label |= core.names
    number_long(core.order, label)
    for block in core.blocks:  # their operands come before them
        terms = (f"{t.matrix} @ {shown(t.operand, label)}" for t in block.terms)
        label[block.leaf] = f"[{' + '.join(terms)}]"
        if len(label[block.leaf]) > LONGEST_SUM:  # of sums of sums of sums
            label[block.leaf] = f"[{' + '.join(f'{t.matrix} @ ...' for t in block.terms)}]"
    return label


def number_long(roots: Iterable[Node], label: dict[Node, str]) -> None:
    """Label what would be long with a number: where values are shared, an expression of fifty nodes
    may be longer than all memory."""
    size: dict[Node, int] = {}
    for node in topological(roots):
        size[node] = 1 if node in label else 1 + sum(size[a] for a in node.args)
        if size[node] > LONGEST:
            label[node] = f"#{len(label)}"
            size[node] = 1


def shown(node: Node, label: dict[Node, str]) -> str:
    """A node as an operand: in parentheses where it is an expression."""
    text = render(node, label)
    return text if node.is_leaf or node in label else f"({text})"
