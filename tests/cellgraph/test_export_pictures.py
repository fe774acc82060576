"""Cells as pictures, formulas and JSON: what is in them, and that names and comments stay text."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given, settings

import cellgraph as cg
from cellgraph import node_link
from cellgraph.exporters import dot, latex, svg
from cellgraph.exporters.drawing import drawing
from cellgraph.exporters.layers import GAP, HEIGHT, STEP, layout
from cellgraph.exporters.mathematics import Formulas, number, symbol
from cellgraph.graph import INPUT, STATE, Node
from cellgraph.ops import OPS
from tests.cellgraph.test_export import HARD, HOSTILE_DOC
from tests.strategies import cells

ROOT = Path(__file__).parents[2]
FORMATS = {"latex": latex.render, "svg": svg.render, "dot": dot.render, "json": node_link.dumps}
SVG = "{http://www.w3.org/2000/svg}"


def mutant(nodes: int) -> cg.CellGraph:
    """A cell that a search might find, of about so many nodes."""
    rng, cell = random.Random(3), cg.load("lstm")
    for _ in range(400):
        child = cg.mutate(cell, rng)
        if child is not None and len(cell.nodes) < len(child.nodes) <= nodes:
            cell = child
    return cell


CELLS = {
    **{name: cg.load(name) for name in ("gru", "lstm", "mut1", "rhn5")},
    "mutant": mutant(60),
    **{name: cg.parse(text) for name, text in HARD.items()},
}


# -- the drawing -----------------------------------------------------------------------------------


def labels(cell: cg.CellGraph) -> list[str]:
    return [box.label() for box in drawing(cell).boxes]


def test_the_boxes_of_a_small_cell() -> None:
    cell = cg.parse(
        "cell a(x, h, c)\n g = tanh(W @ x + U @ h + b)\n h' = (1 - g) * c\n c' = h' - g"
    )
    assert labels(cell) == [
        "x", "h", "c", "W @ ·", "U @ ·", "· + · + b", "g = tanh(·)", "1 - ·", "· * ·", "a - b",
        "h' (output)", "c'",
    ]  # fmt: skip
    boxes = drawing(cell).boxes
    assert boxes[5].sources == (3, 4)
    assert boxes[9].sources == (8, 6)  # a is h', b is g
    assert boxes[9].lettered
    assert not boxes[8].lettered


def test_results_without_a_box_of_their_own() -> None:
    assert "c' = b" in labels(cg.parse(HARD["a state is a parameter"]))
    assert "y = b (output)" not in labels(cg.parse(HARD["the output is a parameter"]))
    assert "b (output)" in labels(cg.parse(HARD["the output is a parameter"]))
    assert labels(cg.parse(HARD["the output is the old state"]))[-1] == "output"
    assert "sigmoid(b)" in labels(cg.parse("cell a(x, h)\n h' = sigmoid(b) * tanh(W @ x + h)"))


@pytest.mark.parametrize("name", CELLS)
def test_every_node_is_in_one_box(name: str) -> None:
    cell = CELLS[name]
    boxes = drawing(cell).boxes
    written = sum(len(_inside(box.node, set(box.holes))) for box in boxes if box.node is not None)
    inner = [node for node in cell.nodes if not node.is_leaf]
    assert written == len(inner)
    for i, box in enumerate(boxes):
        assert all(source < i for source in box.sources)
        assert [boxes[source].node for source in box.sources] == list(box.holes)
    assert {n for n in cell.nodes if n.op in (INPUT, STATE)} <= {box.node for box in boxes}


def _inside(root: Node, holes: set[Node]) -> list[Node]:
    """The ops that a box writes."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        if not node.is_leaf:
            found.append(node)
            stack += [arg for arg in dict.fromkeys(node.args) if arg not in holes]
    return found


# -- the layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_boxes_do_not_overlap_and_arrows_point_down(name: str) -> None:
    drawn = drawing(CELLS[name])
    placed = layout(drawn)
    rows: dict[float, list[tuple[float, float]]] = {}
    for (x, y), width in zip(placed.centres, placed.widths, strict=True):
        rows.setdefault(y, []).append((x - width / 2, x + width / 2))
        assert 0 < x - width / 2 < x + width / 2 < placed.width
        assert HEIGHT / 2 < y < placed.height - HEIGHT / 2
    for row in rows.values():
        for left, right in pairwise(sorted(row)):
            assert left[1] + GAP <= right[0] + 0.2  # places are rounded to a tenth
        for x, top in [(a[0], a[1]) for a, _ in placed.passes]:
            if top + HEIGHT / 2 in rows and rows[top + HEIGHT / 2] is row:
                assert not any(low < x < high for low, high in row)
    heads = sorted(line.head for line in placed.lines if line.head is not None)
    assert heads == sorted(i for i, box in enumerate(drawn.boxes) for _ in box.sources)
    for line in placed.lines:
        assert line.end[1] - line.start[1] == pytest.approx(STEP - HEIGHT)


def crossings(cell: cg.CellGraph) -> int:
    found = layout(drawing(cell)).lines
    rows: dict[float, list[Any]] = {}
    for line in found:
        rows.setdefault(line.start[1], []).append(line)
    return sum(
        (a.start[0] - b.start[0]) * (a.end[0] - b.end[0]) < 0
        for row in rows.values()
        for a, b in combinations(row, 2)
    )


@pytest.mark.parametrize(
    ("name", "most"), [("gru", 4), ("lstm", 8), ("mut1", 5), ("rhn5", 2), ("mutant", 4)]
)
def test_few_lines_cross(name: str, most: int) -> None:
    assert crossings(CELLS[name]) <= most


def test_a_cell_that_is_too_large_for_a_picture(tmp_path: Path) -> None:
    lines = [f" a{i} = tanh(W{i} @ x)" for i in range(220)]
    chain = "".join(f" b{i} = tanh({f'b{i - 1}' if i else 'h'} * a{i})\n" for i in range(220))
    text = "cell large(x, h)\n" + "\n".join(lines) + f"\n{chain} h' = b219" + "".join(
        f" + a{i}" for i in range(220)
    )  # fmt: skip
    for form in ("svg", "latex"):
        with pytest.raises(cg.CellError, match="cell large is too large for a picture"):
            cg.export(cg.parse(text), tmp_path / "a", form)
    assert list(tmp_path.iterdir()) == []


# -- svg -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_svg_is_well_formed_and_says_what_it_shows(name: str) -> None:
    cell = CELLS[name]
    root = ET.fromstring(svg.render(cell))
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    ids = {element.get("id"): element for element in root.iter() if element.get("id")}
    title, desc = (ids[part] for part in str(root.get("aria-labelledby")).split())
    assert cell.name in str(title.text)
    assert desc.text == str(cell).rstrip()
    shown = [text.text for text in root.iter(f"{SVG}text") if text.get("class") != "letter"]
    assert shown == [box.short() for box in drawing(cell).boxes]
    heads = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(heads) == sum(len(box.sources) for box in drawing(cell).boxes)


def test_svg_has_colours_for_light_and_dark() -> None:
    style = ET.fromstring(svg.render(cg.load("gru"))).find(f"{SVG}style")
    assert style is not None
    light, dark = str(style.text).split("@media (prefers-color-scheme: dark)")
    for part in (".back", "text", ".input rect", ".matrix rect", ".op rect", ".line", ".dot"):
        assert f"#cell-gru {part}" in light
        assert f"#cell-gru {part}" in dark


def test_a_hostile_comment_is_text_of_the_picture() -> None:
    doc = f"{HOSTILE_DOC}\n</desc><script>alert(1)</script>]]>&lt;"
    root = ET.fromstring(svg.render(replace(cg.load("gru"), doc=doc)))
    plain = ET.fromstring(svg.render(cg.load("gru")))
    assert [element.tag for element in root.iter()] == [element.tag for element in plain.iter()]
    assert "</desc><script>alert(1)</script>]]>&lt;" in "".join(root.itertext())


# -- dot -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_dot_has_the_boxes_and_arrows_of_the_drawing(name: str) -> None:
    text = dot.render(replace(CELLS[name], doc=HOSTILE_DOC))
    boxes = drawing(CELLS[name]).boxes
    code = [line.strip() for line in text.splitlines() if not line.startswith("//")]
    assert code[0] == f'digraph "{CELLS[name].name}" {{'
    found = [re.fullmatch(r'n(\d+) \[label="([^"\\]*)", tooltip=.*\];', line) for line in code]
    assert [match[2] for match in found if match] == [box.short() for box in boxes]
    arrows = [re.fullmatch(r"n(\d+) -> n(\d+)(?: \[label=\"[a-d]\"\])?;", line) for line in code]
    wanted = [(source, i) for i, box in enumerate(boxes) for source in box.sources]
    assert [(int(match[1]), int(match[2])) for match in arrows if match] == wanted
    assert code[-1] == "}"
    assert len(code) == 6 + len(boxes) + len(wanted)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_draws_it() -> None:
    text = dot.render(replace(cg.parse(HARD["words of Python"]), doc=HOSTILE_DOC))
    done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout.count(b'class="node"') == len(labels(cg.parse(HARD["words of Python"])))


# -- latex -----------------------------------------------------------------------------------------


def formulas(text: str) -> list[tuple[str, list[str]]]:
    return Formulas(cg.parse(text)).equations()


def test_equations_read_as_in_the_papers() -> None:
    assert Formulas(cg.load("gru")).equations() == [
        ("r_{t}", [r"\sigma\left(W_{r}\,x_{t} + U_{r}\,h_{t-1} + b_{r}\right)"]),
        ("z_{t}", [r"\sigma\left(W_{z}\,x_{t} + U_{z}\,h_{t-1} + b_{z}\right)"]),
        ("g_{t}", [r"\tanh\left(W_{g}\,x_{t} + U_{g}\,\left(r_{t} \odot h_{t-1}\right)"
                   r" + b_{g}\right)"]),
        ("h_{t}", [r"z_{t} \odot h_{t-1} + \left(1 - z_{t}\right) \odot g_{t}"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-(h + b) * x", r"\left(-\left(h_{t-1} + b\right)\right) \odot x_{t}"),
        ("h - -b", r"h_{t-1} - \left(-b\right)"),
        ("h - (b - x)", r"h_{t-1} - \left(b - x_{t}\right)"),
        ("2 * h", r"2 \cdot h_{t-1}"),
        ("h * -0.5", r"h_{t-1} \cdot \left(-0.5\right)"),
        ("h / (1 + x)", r"\frac{h_{t-1}}{1 + x_{t}}"),
        ("(h + x) / x * b", r"\frac{h_{t-1} + x_{t}}{x_{t}} \odot b"),
        ("W @ (U @ h)", r"W\,U\,h_{t-1}"),
        ("W @ -h", r"W\,\left(-h_{t-1}\right)"),
        ("0.00001 * h", r"10^{-5} \cdot h_{t-1}"),
        ("square(h) + abs(x)", r"\left(h_{t-1}\right)^2 + \left|x_{t}\right|"),
    ],
)
def test_brackets_where_paper_needs_them(text: str, wanted: str) -> None:
    assert formulas(f"cell a(x, h)\n h' = {text}") == [("h_{t}", [wanted])]


def test_values_have_the_time_at_which_they_are_known() -> None:
    text = "cell a(x, h_1)\n k = exp(alpha)\n g = tanh(W @ x + k)\n h_1' = g * h_1"
    assert [left for left, _ in formulas(text)] == ["k", "g_{t}", "h_{1,t}"]
    assert formulas(text)[2][1] == [r"g_{t} \odot h_{1,t-1}"]
    assert formulas(text)[0][1] == [r"\exp\left(\alpha\right)"]


def test_long_sums_are_broken_between_their_terms() -> None:
    terms = " + ".join(f"W_{i} @ x" for i in range(30))
    ((_, lines),) = formulas(f"cell a(x, h)\n h' = {terms} - h")
    assert len(lines) > 3
    assert all(line.startswith(("+ ", "- ")) for line in lines[1:])
    assert " ".join(lines) == " + ".join(rf"W_{{{i}}}\,x_{{t}}" for i in range(30)) + " - h_{t-1}"


def test_no_two_names_are_one_symbol() -> None:
    names = ["h", "H", "h_t", "h_1", "h1", "h_", "_h", "__h", "h_t_1", "h_t1", "ht", "alpha",
             "h__t", "alpha_t", "Alpha", "a_lpha", "h_tt", "_"]  # fmt: skip
    shown = [symbol(name, time) for name in names for time in ("", "t", "t-1")]
    assert len(set(shown)) == len(shown)


def test_numbers() -> None:
    shown = [number(value) for value in (2.0, -0.5, 1e-5, 2.5e20, -1e-300)]
    assert shown == ["2", "-0.5", "10^{-5}", r"2.5 \times 10^{20}", r"-1 \times 10^{-300}"]


@pytest.mark.parametrize("name", CELLS)
def test_latex_brackets_balance(name: str) -> None:
    text = latex.render(replace(CELLS[name], doc=HOSTILE_DOC))
    code = [line for line in text.splitlines() if not line.startswith("%")]
    plain = re.sub(r"\\[\\_%]", "", "\n".join(code))
    assert plain.count("{") == plain.count("}")
    assert plain.count(r"\left") == plain.count(r"\right")
    assert plain.count("$") % 2 == 0
    nodes = plain.count(r"\node[") - plain.count(r"\node[letter]")
    assert nodes == len(drawing(CELLS[name]).boxes)


def test_symbols_that_are_no_names_are_explained() -> None:
    text = latex.render(
        cg.parse("cell a(x, h)\n h' = hard_sigmoid(W @ x) * tanh(h)\n init W = 0.5")
    )
    assert r"{hs}\left(\bullet\right)$ is \texttt{hard\_sigmoid}" in text
    assert r"\texttt{tanh}" not in text
    assert "At the start of training, $W = 0.5$." in text


def every_op() -> cg.CellGraph:
    """A cell of one sum in which every op stands."""
    x, h = Node(INPUT, (), "x"), Node(STATE, (), "h")
    total = h
    for name, op in OPS.items():
        total = Node("add", (total, Node(name, (h, x)[: op.arity])))
    return cg.build("every_op", [("h", "H", total)], total)


#: Hundreds of boxes, which take TeX seconds.
SLOW = ("long", "many signs")
TEX = next((tool for tool in ("pdflatex", "tectonic") if shutil.which(tool)), None)


@pytest.mark.skipif(TEX is None, reason="neither pdflatex nor tectonic is installed")
def test_latex_compiles(tmp_path: Path) -> None:
    """All bodies as one document: a process takes a second."""
    many = [CELLS["gru"], every_op(), *(cg.parse(HARD[name]) for name in HARD if name not in SLOW)]
    many = [replace(cell, doc=HOSTILE_DOC) for cell in many]
    texts = [latex.render(cell) for cell in many]
    begin, end = r"\begin{document}", r"\end{document}"
    bodies = [text.split(begin)[1].split(end)[0] for text in texts]
    whole = texts[0].split(begin)[0] + begin + "\\clearpage\n".join(bodies) + end
    (tmp_path / "cells.tex").write_text(whole, "utf-8", "replace")
    words = (
        []
        if TEX == "tectonic"
        else ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape"]
    )
    done = subprocess.run(
        [str(TEX), *words, "cells.tex"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:].decode(errors="replace")
    assert (tmp_path / "cells.pdf").stat().st_size > 10_000


# -- json ------------------------------------------------------------------------------------------


def assert_round_trip(cell: cg.CellGraph, folder: Path) -> None:
    path = cg.export(cell, folder / "cell.json", "json", overwrite=True)
    back = cg.load(path)
    assert back == cell
    assert str(back) == str(cell)  # names and comments


@pytest.mark.parametrize("name", CELLS)
def test_json_gives_the_cell_back(name: str, tmp_path: Path) -> None:
    assert_round_trip(CELLS[name], tmp_path)


def test_json_of_drawn_cells(tmp_path: Path) -> None:
    @settings(max_examples=30, database=None, deadline=None)
    @given(cells())
    def check(cell: cg.CellGraph) -> None:
        assert_round_trip(cell, tmp_path)

    check()


def test_json_of_the_largest_cells(tmp_path: Path) -> None:
    large = cg.parse(f"cell a(x, h)\n h' = {' + '.join(f'b{i}' for i in range(990))} + h + x")
    assert_round_trip(large, tmp_path)


def test_json_keeps_comments(tmp_path: Path) -> None:
    assert_round_trip(replace(cg.load("gru"), doc=HOSTILE_DOC), tmp_path)


def test_json_is_what_networkx_reads() -> None:
    data = json.loads(node_link.dumps(cg.load("lstm")))
    assert (data["format"], data["version"]) == ("cellgraph", 1)
    assert cg.from_networkx(nx.node_link_graph(data, edges="edges")) == cg.load("lstm")


def test_recipes_are_still_recipes(tmp_path: Path) -> None:
    path = cg.export("gru", tmp_path / "gru.json", "nasbench")
    assert cg.same_function(cg.load(path), cg.load("gru"))
    document = json.loads(path.read_text())
    document["format"] = document.pop(next(iter(document)))  # a node may be called format
    path.write_text(json.dumps(document))
    with pytest.raises(cg.CellError, match="expected the name of a node"):
        cg.load(path)


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    def apply(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return apply


# The nodes of `h' = tanh(W @ x + h)`: 0 W, 1 x, 2 matmul, 3 h, 4 add, 5 tanh.
GARBAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "format": (change("format", to="other"), "a graph in the format 'other', version 1, expected"),
    "version": (change("version", to=2), "a graph in the format 'cellgraph', version 2, expected"),
    "no nodes": (lambda d: d.pop("nodes"), "nodes is missing, expected a list"),
    "edges": (change("edges", to={}), "edges is {}, expected a list"),
    "node": (change("nodes", 0, to=3), "a node 3, expected an object with id"),
    "id": (change("nodes", 0, "id", to=True), "a node with the id True, expected a whole number"),
    "twice": (change("nodes", 0, "id", to=1), "two nodes have the id 1, expected different ones"),
    "op": (change("nodes", 5, "op", to="tanf"), "unknown op 'tanf'"),
    "no op": (change("nodes", 5, "op", to=None), "op is None, expected a str"),
    "attr": (change("nodes", 0, "attr", to=["W"]), "param has the attribute ['W']"),
    "name": (
        change("nodes", 0, "attr", to="a b"),
        "'a b' names a parameter, expected a name of the notation",
    ),
    "end": (change("edges", 0, "source", to=99), "an edge has the end 99, expected the id of a"),
    "port": (change("edges", 0, "port", to="0"), "an edge with the port '0', expected a whole"),
    "ports": (change("edges", 0, "port", to=1), "node 2 has ports [1, 1], expected 0, 1"),
    "cycle": (change("edges", 0, "source", to=5), "the graph of the cell has a cycle"),
    "states": (change("graph", "states", to=[["h", "H", 77]]), "the graph of the cell lacks 77"),
    "no states": (change("graph", "states", to=[]), "state 'h' is read but not declared"),
    "state": (change("graph", "states", to=[3]), "the graph of the cell is malformed"),
    "output": (change("graph", "output", to="h"), "output is 'h', expected a int"),
    "inits": (change("graph", "inits", to={"W": 3}), "the graph of the cell is malformed"),
    "doc": (change("graph", "doc", to=None), "doc is None, expected a str"),
    "many": (change("nodes", to=[0] * 3000), "a graph of 3000 nodes and 5 edges, expected at most"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_graphs_that_are_none(name: str, tmp_path: Path) -> None:
    apply, message = GARBAGE[name]
    document = json.loads(node_link.dumps(cg.parse("cell a(x, h)\n h' = tanh(W @ x + h)")))
    apply(document)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    with pytest.raises(cg.CellError) as caught:
        cg.load(path)
    first = str(caught.value).splitlines()[0]
    assert first.startswith(f"{path}: ")
    assert message in first


# -- all of them -----------------------------------------------------------------------------------


def test_the_same_bytes_everywhere(tmp_path: Path) -> None:
    code = (
        "import sys, cellgraph as cg\n"
        "from cellgraph import node_link\n"
        "from cellgraph.exporters import dot, latex, svg\n"
        "cell = cg.parse(sys.stdin.read())\n"
        "for form in (latex.render, svg.render, dot.render, node_link.dumps):\n"
        "    sys.stdout.write(form(cell))\n"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, cwd=tmp_path,
        input=str(CELLS["mutant"]).encode(),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    here = cg.parse(str(CELLS["mutant"]))
    assert done.stdout.decode() == "".join(form(here) for form in FORMATS.values())


@pytest.mark.parametrize("form", FORMATS)
def test_export_writes_what_the_modules_render(form: str, tmp_path: Path) -> None:
    path = cg.export("mut1", tmp_path / "a", form)
    assert path.read_text("utf-8") == FORMATS[form](cg.load("mut1"))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
