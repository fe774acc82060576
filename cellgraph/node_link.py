"""Cells as JSON: the networkx graph of `interchange.py` in the node-link form that networkx, D3 and
others read, marked with a format and its version.

    {"format": "cellgraph", "version": 1, "directed": true, "multigraph": true,
     "graph": {"name": …, "states": [[name, width, id of the next value], …], "output": id,
               "scalars": [name, …], "skews": [name, …], "inits": {name: [kind, value], …},
               "names": [[name, id], …], "doc": …},
     "nodes": [{"id": 0, "op": …, "attr": name, number or null}, …],
     "edges": [{"source": id, "target": id, "key": 0, "port": 0}, …]}

An edge goes from argument to user, where it is the argument `port`. `networkx.node_link_graph` with
edges="edges" gives back what `to_networkx` gave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import networkx as nx

from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.interchange import from_networkx, to_networkx
from cellgraph.widths import MAX_NODES

FORMAT, VERSION = "cellgraph", 1

_ABOUT = {"name": str, "states": list, "output": int, "scalars": list, "skews": list,
          "inits": dict, "names": list, "doc": str}  # fmt: skip
_NODE = ("id", "op", "attr")
_EDGE = ("source", "target", "key", "port")


def dumps(cell: CellGraph) -> str:
    """The cell as JSON, a node or an edge a line."""
    data = nx.node_link_data(to_networkx(cell), edges="edges")
    ordered = {
        "format": FORMAT,
        "version": VERSION,
        "directed": True,
        "multigraph": True,
        "graph": {name: data["graph"][name] for name in _ABOUT},
        "nodes": [{name: node[name] for name in _NODE} for node in data["nodes"]],
        "edges": [{name: edge[name] for name in _EDGE} for edge in data["edges"]],
    }
    parts = []
    for name, value in ordered.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
        parts.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def marked(document: object) -> bool:
    """Does a document of JSON say which format it has? A recipe of NAS-Bench-NLP has nodes only."""
    return isinstance(document, Mapping) and isinstance(document.get("format"), str)


def read(document: Mapping[str, Any]) -> CellGraph:
    """The cell of a document. Raises `CellError` for another format or version, and for whatever is
    not as `dumps` writes it."""
    if document["format"] != FORMAT or document.get("version") != VERSION:
        found = f"{document['format']!r:.40}, version {document.get('version')!r:.40}"
        raise CellError(f"a graph in the format {found}, expected {FORMAT!r}, version {VERSION}")
    about = _typed(document, "graph", dict)
    nodes, edges = (_typed(document, name, list) for name in ("nodes", "edges"))
    if len(nodes) > MAX_NODES or len(edges) > 2 * MAX_NODES:
        raise CellError(f"a graph of {len(nodes)} nodes and {len(edges)} edges, expected at most "
                        f"{MAX_NODES} and {2 * MAX_NODES}")  # fmt: skip
    graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
    for name, kind in _ABOUT.items():
        graph.graph[name] = _typed(about, name, kind)
    for node in nodes:
        number = _whole(node, "id", "a node")
        if number in graph:
            raise CellError(f"two nodes have the id {number}, expected different ones")
        graph.add_node(number, op=_typed(node, "op", str), attr=node.get("attr"))
    for edge in edges:
        ends = [_whole(edge, name, "an edge") for name in ("source", "target")]
        for end in ends:
            if end not in graph:
                raise CellError(f"an edge has the end {end}, expected the id of a node")
        graph.add_edge(*ends, port=_whole(edge, "port", "an edge"))
    return from_networkx(graph)


def _whole(row: object, name: str, what: str) -> int:
    if not isinstance(row, Mapping):
        raise CellError(f"{what} {row!r:.40}, expected an object with {name}")
    value = row.get(name)
    if type(value) is not int:  # not True
        raise CellError(f"{what} with the {name} {value!r:.40}, expected a whole number")
    return value


def _typed(row: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(row.get(name), kind):
        found = f"{row[name]!r:.40}" if name in row else "missing"
        raise CellError(f"{name} is {found}, expected a {kind.__name__}")
    return row[name]
