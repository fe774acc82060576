"""The parts of a compiled cell as C: names, products, loops. `emit.py` puts them together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from cellgraph.graph import CONST, INPUT, Node, is_name
from cellgraph.kernels.labels import labels, shown
from cellgraph.kernels.layout import layout
from cellgraph.kernels.plan import Loop, Place, Plan, Product
from cellgraph.ops import OPS

LONGEST_LINE = 100  # characters; compilers also limit how deep brackets nest


@cache
def _taken() -> frozenset[str]:
    """Every word of the headers: no value may be called like one."""
    folder = Path(__file__).parent
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.h")))
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


@cache
def _column(op: str) -> str:
    """The C column of an op with its numbers as vectors; the holes stay."""
    number = r"(?<![\w{.])\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w}])"
    return re.sub(number, lambda match: f"R({match.group()})", OPS[op].c)


class Writer:
    """Lines of C for one plan. `named` gives values the names of the cell's equations."""

    def __init__(self, plan: Plan, *, named: bool) -> None:
        self.plan, self.core, self.named = plan, plan.core, named
        self.layout = layout(plan)
        self.width = {w: f"n{i}" for i, w in enumerate(self.layout.widths)}
        if named:
            self.width |= {w: w for w in ("H", "X") if w in self.width}
        self.values: dict[Node, str] = {}
        self.lines: list[str] = []
        self.depth = 0
        self.loops: list[str] = []
        self.number = ""
        cell = plan.core.cell
        names = [cell.name, *(p.name for p in cell.params), *(s.name for s in cell.states)]
        names += [name.removesuffix("'") for name, _ in cell.names]
        names += [str(node.attr) for node in cell.nodes if node.op == INPUT]
        #: Only names of the notation may stand in comments.
        self.explained = named and all(is_name(name) or is_name(name + "_") for name in names)
        self.labels = labels(plan.core) if self.explained else {}

    # -- text

    def put(self, *lines: str) -> None:
        self.lines += ["    " * self.depth + line if line else "" for line in lines]

    def open(self, line: str) -> None:
        self.put(line + " {")
        self.depth += 1

    def close(self, count: int = 1) -> None:
        for _ in range(count):
            self.depth -= 1
            self.put("}")

    def label(self, prefix: str, name: object, number: int) -> str:
        """An identifier for something of the user's: its name where that is harmless."""
        text = f"{prefix}_{str(name).replace(chr(39), '_next')}"
        plain = is_name(str(name).removesuffix("'")) and len(text) < 60 and text not in _taken()
        return text if self.named and plain else f"{prefix}{number}"

    def value(self, node: Node) -> str:
        """The name of a value, or a number."""
        if node.op == CONST:
            return f"R({float(node.attr)!r})"  # type: ignore[arg-type]
        if node not in self.values:
            known = self.core.names.get(node, "" if node.args else node.attr or "")
            name = self.label("v", known, len(self.values))
            if name in self.values.values():
                name = f"v{len(self.values)}"
            self.values[node] = name
        return self.values[node]

    def explain(self, text: str) -> str:
        """A comment behind a line."""
        return f"  /* {text} */" if self.explained else ""

    def matrix(self, name: str) -> str:
        return f"matrix{self.core.matrices().index(name)}"

    # -- products

    def columns_of(self, columns: Iterable[int]) -> str:
        """How wide these columns of the tape are together."""
        widths = Counter(self.width[self.plan.columns[c]] for c in columns)
        terms = [w if count == 1 else f"{count} * {w}" for w, count in widths.items()]
        return terms[0] if len(terms) == 1 else f"({' + '.join(terms)})"

    def pack(self, product: Product, tag: str, *, transposed: bool) -> None:
        """All matrices of a product, for its columns (transposed) or for their gradients."""
        columns = self.columns_of(product.columns)
        n = self.width[str(self.plan.adjoint.width[product.operand])]
        size = f"{n} * padded({columns})" if transposed else f"{columns} * {n}_"
        heights = ", ".join(self.width[self.plan.columns[c]] for c in product.columns)
        matrices = ", ".join(self.matrix(m) for m in product.matrices)
        self.put(
            f"real *const {tag} = part(&room, {size});",
            f"matrix->pack({tag}, {len(product.matrices)}, (const long[]){{{heights}}}, {n}, "
            f"(const real *const[]){{{matrices}}}, {int(transposed)});",
        )

    def multiply(
        self,
        product: Product,
        tag: str,
        rows: str,
        operand: str,
        stride: str,
        tape: str = "tape_t",
    ) -> None:
        """columns of the tape (+)= operand @ matrices."""
        if self.explained:
            stack, shown_ = ", ".join(product.matrices), shown(product.operand, self.labels)
            sign = "+=" if product.accumulate else "="
            self.put(f"/* sums {sign} [{stack}] @ {shown_} */")
        columns = self.columns_of(product.columns)
        depth = self.width[str(self.core.width[product.operand])]
        self.put(
            f"matrix->product({rows}, {columns}, {depth}, {operand}, {stride}, {tag}, "
            f"{tape} + column{product.columns[0]}, row, {int(product.accumulate)});"
        )

    def multiply_back(
        self, product: Product, tag: str, rows: str, tape: str, to: str, stride: str
    ) -> None:
        """gradient of an operand (+)= columns of the tape @ matrices."""
        depth = self.columns_of(product.columns)
        n = self.width[str(self.plan.adjoint.width[product.operand])]
        self.put(
            f"matrix->product({rows}, {n}, {depth}, {tape} + column{product.columns[0]}, row, "
            f"{tag}, {to}, {stride}, {int(product.accumulate)});"
        )

    def operand(self, node: Node) -> tuple[str, str]:
        """Pointer and stride of an operand in a forward step."""
        place = self.plan.place.get(node)
        if place is None:
            index = self.plan.states.index(node)
            return f"before{index}", f"{self.width[self.core.cell.states[index].width]}_"
        if place.kind == "next":
            return f"after{place.index}", f"{self.width[str(self.core.width[node])]}_"
        return f"tape_t + column{place.index}", "row"

    # -- loops

    def loop(self, loop: Loop) -> None:
        """A function of its own, and its call: see GLUE in cell.h."""
        around, self.lines, depth, self.depth = self.lines, [], self.depth, 1
        self.loop_body(loop)
        body, self.lines, self.depth = self.lines, around, depth
        text = "\n".join(body)
        words = frozenset(re.findall(r"\w+", text))
        arguments = [name for name in self.arguments() if name in words]
        typed = ", ".join(f"{self.argument_type(name)}{name}" for name in arguments)
        name = f"loop{len(self.loops)}_{self.number}"
        self.loops.append("\n".join([f"static void {name}({typed})", "{", text, "}", ""]))
        self.put(f"{name}({', '.join(arguments)});")

    def arguments(self) -> list[str]:
        """Whatever a loop may read of the function around it."""
        plan, layout_ = self.plan, self.layout
        names = ["n", "at_t", "row", *self.width.values(), "tokens", "tape_t", "y", "dy"]
        names += [f"column{i}" for i in range(len(plan.columns))]
        states = ("before", "after", "d_before", "d_after")
        names += [f"{kind}{i}" for i in range(layout_.states) for kind in states]
        names += [f"{kind}{i}" for i in range(layout_.rows) for kind in ("x", "dx")]
        names += [f"s{i}" for i in range(layout_.statics)]
        names += [f"work{i}" for i in range(len(plan.work))]
        return names + [f"sum{i}" for i in range(len(plan.accumulated))]

    def argument_type(self, name: str) -> str:
        """Its type, with the space behind it."""
        if name in ("n", "at_t", "row", *self.width.values()) or name.startswith("column"):
            return "long "
        if name == "tokens":
            return "const long *"
        if re.fullmatch(r"s\d+", name) and self.is_scalar(int(name[1:])):
            return "real "
        return "const real *" if re.fullmatch(r"(before|x|s)\d+|dy", name) else "real *"

    def is_scalar(self, static: int) -> bool:
        return self.core.width[self.core.statics[static]] is None

    def loop_body(self, loop: Loop) -> None:
        width = self.width[loop.width]
        self.open("for (long b = 0; b < n; b++)")
        places = [place for _, place in (*loop.loads, *loop.stores)]
        for name, line in dict.fromkeys(self.row_pointer(p, width) for p in places):
            if name:
                self.put(line)
        self.open(f"for (long j = 0; j < {width}; j += LANES)")
        inlined = self.used_once(loop)
        text: dict[Node, str] = {}
        for node, place in loop.loads:
            self.define(node, self.load(place, width), text, node in inlined)
        for node in loop.values:
            column = _column(node.op)
            args = [text[a] if a in text else self.value(a) for a in node.args]
            bare = [_bare(a) if f"({{{i}}})" in column else a for i, a in enumerate(args)]
            self.define(node, column.format(*bare), text, node in inlined)
        for node, place in loop.stores:
            self.store(place, width, text[node] if node in text else self.value(node))
        self.close(2)

    def define(self, node: Node, expression: str, text: dict[Node, str], inline: bool) -> None:
        """A line of its own for what has a name or several readers."""
        if inline and len(expression) <= LONGEST_LINE:
            text[node] = expression
        else:
            self.put(f"const V {self.value(node)} = {_bare(expression)};")

    def used_once(self, loop: Loop) -> dict[Node, None]:
        """Values without a name that stand in one place: they are written there. What is stored is
        not among them, so that everything is read before anything is written."""
        uses: dict[Node, int] = {}
        for node in loop.values:
            for index, arg in enumerate(node.args):
                uses[arg] = uses.get(arg, 0) + OPS[node.op].c.count(f"{{{index}}}")
        stored = dict.fromkeys(node for node, _ in loop.stores)
        candidates = (*(n for n, _ in loop.loads), *loop.values)
        named = self.core.names if self.named else {}
        return dict.fromkeys(
            n
            for n in candidates
            if uses.get(n) == 1 and n not in stored and (n.is_leaf or n not in named)
        )

    def row_pointer(self, place: Place, width: str) -> tuple[str, str]:
        """Name of the pointer to row b of what a place lies in, and its definition."""
        i = place.index
        kind = "real *const"
        if place.kind in ("state", "next", "dnext", "dstate", "work"):
            name = {
                "state": f"before{i}",
                "next": f"after{i}",
                "dnext": f"d_after{i}",
                "dstate": f"d_before{i}",
                "work": f"work{i}",
            }[place.kind]
            kind = f"const {kind}" if place.kind == "state" else kind
            return f"{name}_b", f"{kind} {name}_b = {name} + b * padded({width});"
        if place.kind == "tape":
            return "tape_b", "real *const tape_b = tape_t + b * row;"
        if place.kind in ("dy", "output"):
            array = "dy" if place.kind == "dy" else "y"
            kind = f"const {kind}" if place.kind == "dy" else kind
            return f"{array}_b", f"{kind} {array}_b = {array} + (at_t + b) * {width};"
        if place.kind == "row":
            return (
                f"x{i}_b",
                f"const real *const x{i}_b = x{i} + entry(tokens, at_t + b) * {width};",
            )
        if place.kind == "drow":
            line = (
                f"real *const dx{i}_b = dx{i} ? dx{i} + entry(tokens, at_t + b) * {width} : NULL;"
            )
            return f"dx{i}_b", line
        return "", ""

    def load(self, place: Place, width: str) -> str:
        i = place.index
        if place.kind == "static":
            return f"splat(s{i})" if self.is_scalar(i) else f"load(s{i} + j)"
        name, _ = self.row_pointer(place, width)
        if place.kind in ("row", "dy"):
            return f"load_part({name} + j, {width} - j)"
        return f"load({name} + column{i} + j)" if place.kind == "tape" else f"load({name} + j)"

    def store(self, place: Place, width: str, value: str) -> None:
        i = place.index
        name, _ = self.row_pointer(place, width)
        if place.kind == "output":
            self.put(f"store_part(y_b + j, {value}, {width} - j);")
        elif place.kind == "drow":
            self.put(f"if ({name})", f"    give({name} + j, {value}, {width} - j, tokens != NULL);")
        elif place.kind == "dstatic":
            self.put(f"store(sum{i} + j, load(sum{i} + j) + {value});")
        elif place.kind == "tape":
            self.put(f"store_part({name} + column{i} + j, {value}, {width} - j);")
        else:
            self.put(f"store({name} + j, {value});")

    def start(self, t: str) -> str:
        return f"(starts ? starts[{t}] : ({t}) * B)"

    def step(self) -> None:
        """Rows of this step, and where they lie."""
        self.put(
            f"const long at_t = {self.start('t')}, n = {self.start('t + 1')} - at_t;",
        )

    def histories(self) -> None:
        """Where the states before and after this step lie."""
        for index, state in enumerate(self.core.cell.states):
            w = f"{self.width[state.width]}_"
            before = f"(t ? B + {self.start('t - 1')} : 0)"
            self.put(
                f"const real *const before{index} = history{index} + {w} * "
                f"(recording ? {before} : B * (t & 1));",
                f"real *const after{index} = history{index} + {w} * "
                "(recording ? B + at_t : B * (~t & 1));",
            )


def _bare(text: str) -> str:
    """An expression without the brackets around all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for at, sign in enumerate(text):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1]
