"""Names for the values of a plan, in the words of the cell's equations."""

from __future__ import annotations

from cellgraph.graph import Node
from cellgraph.printing import render
from cellgraph.stages import Core


def labels(core: Core) -> dict[Node, str]:
    """What to call the leaves and the named values of a core; a block is its sum in brackets."""
    label = {leaf: f"({render(node, {})})" for leaf, node in core.prelude.items()}
    label |= core.names
    for block in core.blocks:  # their operands come before them
        terms = (f"{t.matrix} @ {shown(t.operand, label)}" for t in block.terms)
        label[block.leaf] = f"[{' + '.join(terms)}]"
    return label


def shown(node: Node, label: dict[Node, str]) -> str:
    """A node as an operand: in parentheses where it is an expression."""
    text = render(node, label)
    return text if node.is_leaf or node in label else f"({text})"
