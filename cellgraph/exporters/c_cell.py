"""One time step of a layer in one direction as lines of C, in the words of the cell's equations."""

from __future__ import annotations

from collections import Counter

from cellgraph.exporters.c_plan import Loop, Product, X, plan
from cellgraph.exporters.c_text import (
    COLUMNS,
    Expression,
    Functions,
    Identifiers,
    number,
    signed,
    size_sum,
)
from cellgraph.graph import CONST, PARAM, STATE, CellGraph, Node
from cellgraph.kernels.labels import labels, shown
from cellgraph.ops import ATOM, OPS
from cellgraph.stages import is_block

#: Characters of an expression; what is longer is broken up.
LONGEST = 72
#: Names of the generated file, which nothing of the user's may take.
OURS = (
    *("state", "work", "sums", "entered", "between", "steps", "spare", "layer", "in", "out", "to"),
    *("cell", "layers", "weights", "inputs", "clear", "product", "rows", "cols", "matrix", "scale"),
    *("w", "k", "i", "t", "n", "x", "y", "a", "b", "x0", "x1", "x2", "x3", "m0", "m1", "m2", "m3"),
)


class CellText:
    """What the step of a cell says: the names of its sizes, weights, states and room, and the lines
    between the braces of its function.

    `int8`: matrices are int8_t, each with a scale for every row.
    """

    def __init__(self, cell: CellGraph, names: Identifiers, int8: bool) -> None:
        self.names, self.int8 = names, int8
        self.functions = Functions(names)
        self.cell, self.step = cell, plan(cell)
        self.core = self.step.core
        core, give = self.core, names.give
        self.labels = labels(core)
        sized = [*core.width.values(), *(s.width for s in cell.states)]
        widths = dict.fromkeys(w for w in sized if w)
        self.width = {width: give(width) for width in widths}
        self.states = {state.name: give(state.name) for state in cell.states}
        self.projection = give("input_projection")
        self.statics = {leaf: give(self.wanted(leaf, "s1")) for leaf in self.step.statics}
        self.stacks: dict[tuple[str, ...], str] = {}  # matrices on top of each other: member
        for product in self.step.products:
            if product.matrices not in self.stacks:
                self.stacks[product.matrices] = give(self._stack(product))
        self.room = {node: give(self._room(node)) for node in self.step.held}
        self.used: set[str] = set()  # states and x, where their memory is used; membership only
        self.offset: dict[Node, str] = {}
        before: Counter[str] = Counter()
        for block in self.step.blocks:
            self.offset[block.leaf] = size_sum(before)
            before[self.width[block.width]] += 1

    # -- names ----------------------------------------------------------------------------------

    def wanted(self, node: Node, other: str) -> str:
        """What the text calls a value, or `other`."""
        name = self.core.names.get(node) or ("" if node.args else str(node.attr))
        return other if not name or name.startswith("@") else name.replace("'", "_next")

    def _stack(self, product: Product) -> str:
        """A matrix keeps its name; several are called after what they multiply."""
        if len(product.matrices) == 1:
            return product.matrices[0]
        return f"weight_{self.wanted(product.operand, 'inner')}"

    def _room(self, node: Node) -> str:
        """A held value is named after itself, or after the matrix that it enters."""
        entered = (p.matrices[0] for p in self.step.products if p.operand is node)
        return self.wanted(node, next((f"in_{matrix}" for matrix in entered), "n1"))

    # -- members --------------------------------------------------------------------------------

    def members(self, projected: bool) -> list[str]:
        """Of the struct that holds the weights of one layer."""
        members = []
        stacks = [(name, ", ".join(matrices)) for matrices, name in self.stacks.items()]
        for name, of in [*([(self.projection, "")] if projected else []), *stacks]:
            note = f"  /* {_short(of)} */" if of not in ("", name) else ""
            members += [f"const {'int8_t' if self.int8 else 'float'} *{name};{note}"]
            members += [f"const float *{name}_scale;"] if self.int8 else []
        for leaf, name in self.statics.items():
            text = shown(leaf, self.labels)
            note = f"  /* {_short(text)} */" if text != name else ""
            star = "" if self.core.width[leaf] is None else "*"
            members.append(f"{'const ' if star else ''}float {star}{name};{note}")
        return members

    def rooms(self) -> list[tuple[str, str]]:
        """The held values: name and width."""
        return [(name, str(self.core.width[node])) for node, name in self.room.items()]

    @property
    def sums(self) -> tuple[str, ...]:
        """The widths of the sums of products, in order."""
        return tuple(block.width for block in self.step.blocks)

    # -- lines ----------------------------------------------------------------------------------

    def body(self, projected: bool) -> list[str]:
        """The lines of the function of one step, for `w`, `x`, `y`, `state` and the layer `k`."""
        lines: list[str] = []
        if self.sums:
            lines += self._legend()
            total = size_sum(Counter(self.width[width] for width in self.sums))
            lines.append(f"clear(sums, {total});")
        for phase in self.step.phases:
            lines += ["", *(line for p in phase.products for line in self._product(p))]
            lines += [line for loop in phase.loops for line in self._loop(loop)]
        used = [name for name in self.states.values() if name in self.used]
        top = [f"float *const {name} = state->{name}[k];" for name in used]
        places = [*(["sums"] if self.sums else []), *self.room.values()]
        top += [f"float *const {name} = state->work.{name};" for name in places]
        if self._loops_over("X"):
            top.insert(0, f"const int {self.width['X']} = w->inputs;")
        top += self._project() if projected else []
        return [*top, *([""] if top and lines and lines[0] else []), *lines]

    def _loops_over(self, width: str) -> bool:
        """Does any loop, here or in a product, run over this width?"""
        loops = (loop for phase in self.step.phases for loop in phase.loops)
        operands = (p.operand for p in self.step.products)
        found = [*self.sums, *(lo.width for lo in loops), *(self.core.width[o] for o in operands)]
        return width in found

    def _legend(self) -> list[str]:
        """Which sum lies where."""
        pairs = [(f"sums[{o}]", self.labels[leaf][1:-1]) for leaf, o in self.offset.items()]
        pad = max(len(place) for place, _ in pairs)
        texts = [f"{place:<{pad}}  {_short(text)}" for place, text in pairs]
        lines = [f"{'   ' if at else '/* '}{text}" for at, text in enumerate(texts)]
        return [*lines[:-1], f"{lines[-1]} */"]

    def _project(self) -> list[str]:
        """x at the width that a cell needs which uses it outside matrices."""
        name = f"w->{self.projection}"
        width = self.width[str(self.cell.raw_x)]
        return [
            "float *const entered = state->work.entered;",
            "",
            f"if ({name} != 0) {{  /* x has another width than {self.cell.raw_x} */",
            f"    clear(entered, {width});",
            f"    {self._call('entered', name, 'x', width, 'w->inputs')}",
            "    x = entered;",
            "}",
        ]

    def _product(self, product: Product) -> list[str]:
        rows = size_sum(Counter(self.width[block.width] for block in product.blocks))
        offset = self.offset[product.blocks[0].leaf]
        to = "sums" if offset == "0" else f"sums + {offset}"
        cols = self.width[str(self.core.width[product.operand])]
        member = f"w->{self.stacks[product.matrices]}"
        stack = ", ".join(product.matrices)
        stack = f"[{stack}]" if len(product.matrices) > 1 else stack
        said = _short(f"{stack} @ {shown(product.operand, self.labels)}")
        call = self._call(to, member, self._operand(product.operand), rows, cols)
        return [f"/* sums += {said} */", call]

    def _call(self, to: str, matrix: str, operand: str, rows: str, cols: str) -> str:
        scale = f", {matrix}_scale" if self.int8 else ""
        return f"product({to}, {matrix}{scale}, {operand}, {rows}, {cols});"

    def _operand(self, node: Node) -> str:
        """A pointer to the elements of a value."""
        if is_block(node):
            return "sums" if self.offset[node] == "0" else f"sums + {self.offset[node]}"
        if node in self.room:
            return self.room[node]
        if node is X:
            self.used.add("x")
            return "x"
        return self.state(self.step.early.get(node) or str(node.attr))

    def state(self, name: str) -> str:
        """A pointer to the elements of a state."""
        self.used.add(self.states[name])
        return self.states[name]

    def element(self, node: Node) -> Expression:
        """Element i of a value that lies in memory, or a number."""
        if node.op == CONST:
            return signed(number(float(node.attr)))  # type: ignore[arg-type]
        if node.op == PARAM:
            scalar = self.core.width[node] is None
            return f"w->{self.statics[node]}{'' if scalar else '[i]'}", ATOM
        if is_block(node):
            offset = self.offset[node]
            return "sums[i]" if offset == "0" else f"sums[{offset} + i]", ATOM
        return f"{self._operand(node)}[i]", ATOM

    def _loop(self, loop: Loop) -> list[str]:
        body = _Body(self, loop).lines()
        return [
            f"for (int i = 0; i < {self.width[loop.width]}; i++) {{",
            *(f"    {line}" for line in body),
            "}",
        ]


class _Body:
    """The lines inside one loop: a line of its own for what has a name or several readers."""

    def __init__(self, text: CellText, loop: Loop) -> None:
        self.text, self.loop = text, loop
        self.inside = frozenset(loop.values)
        self.uses = Counter(a for node in loop.values for a in node.args)
        self.uses.update(node for node, _ in loop.stores)
        self.value: dict[Node, Expression] = {}
        self.inline: set[Node] = set()  # for membership only
        self.written: list[str] = []

    def lines(self) -> list[str]:
        for node in self.loop.values:
            args = self._args(node)
            self.value[node] = self.text.functions.apply(OPS[node.op], args)
            self.inline.add(node)
            if node in self.text.core.names or self.uses[node] > 1:
                self._name(node)
        stores = [(node, to) for node, to in self.loop.stores if to]
        for node, _ in stores:  # what is written must not be read afterwards
            changed = len(stores) > 1 and node.op != PARAM and not is_block(node)
            if changed and (node in self.inline or node not in self.inside):
                self._name(node)
        for node, to in self.loop.stores:
            if not to:
                place = "y" if to == "" else self.text.room[node]
                self.written.append(f"{place}[i] = {self._get(node)[0]};")
        self.written += [f"{self.text.state(to)}[i] = {self._get(n)[0]};" for n, to in stores if to]
        return self.written

    def _args(self, node: Node) -> list[Expression]:
        """The operands of a value, the longest on lines of their own where it is too long."""
        length = {a: len(self._get(a)[0]) for a in node.args}
        total = sum(length[a] for a in node.args)
        for arg in sorted(length, key=lambda a: -length[a]):
            if total > LONGEST and arg in self.inline:
                self._name(arg)
                total -= length[arg]
        return [self._get(a) for a in node.args]

    def _get(self, node: Node) -> Expression:
        return self.value.get(node) or self.text.element(node)

    def _name(self, node: Node) -> None:
        """Give the value a line of its own."""
        wanted = self.text.wanted(node, "n1")
        name = self.text.names.give(f"{wanted}_old" if node.op == STATE else wanted)
        self.written.append(f"const float {name} = {self._get(node)[0]};")
        self.value[node] = (name, ATOM)
        self.inline.discard(node)


def _short(text: str) -> str:
    """A text that fits into a comment on a line."""
    most: int = COLUMNS - 30
    return text if len(text) <= most else f"{text[: most - 4]} ..."
