"""networkx in and out: a MultiDiGraph for drawing, measuring and editing with other people's tools.

Nodes are whole numbers in topological order with `op` and `attr`; an edge goes from argument to
user with its `port`. The graph's own attributes hold name, states (name, width, number of the next
value), output and declared parameters.
"""

from __future__ import annotations

from typing import Any

import networkx as nx

from cellgraph.errors import CellError
from cellgraph.graph import CellGraph, Init, Node
from cellgraph.notation import parse
from cellgraph.widths import build


def to_networkx(cell: CellGraph) -> nx.MultiDiGraph[int]:
    """The cell as a networkx graph; `from_networkx` gives it back."""
    graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
    number = {node: i for i, node in enumerate(cell.nodes)}
    for node, i in number.items():
        graph.add_node(i, op=node.op, attr=node.attr)
    for node, i in number.items():
        for port, arg in enumerate(node.args):
            graph.add_edge(number[arg], i, port=port)
    graph.graph.update(
        name=cell.name,
        states=[(s.name, s.width, number[s.next]) for s in cell.states],
        output=number[cell.outputs[0]],
        scalars=[*cell.scalars],
        skews=[*cell.skews],
        inits={p.name: (p.init.kind, p.init.value) for p in cell.params if p.init is not None},
        names=[(name, number[node]) for name, node in cell.names],
        doc=cell.doc,
    )
    return graph


def from_networkx(graph: nx.MultiDiGraph[Any]) -> CellGraph:
    """Read a cell from a networkx graph in the form that `to_networkx` writes. Raises
    `CellError`."""
    try:
        cell = _read(graph)
        text = str(cell)
    except KeyError as error:
        raise CellError(
            f"the graph of the cell lacks {error}, expected the form that to_networkx writes"
        ) from None
    except CellError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise CellError(
            f"the graph of the cell is malformed ({error}), "
            "expected the form that to_networkx writes"
        ) from None
    # Names that the notation does not know could be anything, and would reach generated code.
    try:
        reads_back = parse(text) == cell
    except CellError:
        reads_back = False
    if not reads_back:
        raise CellError(
            f"the graph of cell {cell.name!r} cannot be written as notation, expected plain names, "
            "finite numbers, and attributes on leaves only"
        )
    return cell


def _read(graph: nx.MultiDiGraph[Any]) -> CellGraph:
    if not nx.is_directed_acyclic_graph(graph):
        raise CellError(
            "the graph of the cell has a cycle, expected recurrence to go through states only"
        )
    made: dict[Any, Node] = {}
    for i in nx.topological_sort(graph):
        ports = sorted((data["port"], source) for source, _, data in graph.in_edges(i, data=True))
        if [port for port, _ in ports] != list(range(len(ports))):
            raise CellError(
                f"node {i} has ports {[p for p, _ in ports]}, expected 0, 1, … once each"
            )
        attr = graph.nodes[i].get("attr")
        made[i] = Node(graph.nodes[i]["op"], tuple(made[source] for _, source in ports), attr)
    about = graph.graph
    return build(
        about["name"],
        [(name, width, made[i]) for name, width, i in about["states"]],
        made[about["output"]],
        scalars=about.get("scalars", ()),
        skews=about.get("skews", ()),
        inits={name: Init(kind, value) for name, (kind, value) in about.get("inits", {}).items()},
        names=[(name, made[i]) for name, i in about.get("names", ())],
        doc=about.get("doc", ""),
    )
