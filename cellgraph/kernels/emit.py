"""Prints a plan as C: two functions, the whole sequence forward and backward.

The text is meant to be read: one line for each equation, under the cell's own names where they are
names of the notation (whatever else is numbered, so that no text of a user reaches the compiler).
Everything about sizes is an argument, so one library serves every H, X, B and T.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from cellgraph.kernels import compiler
from cellgraph.kernels.labels import shown
from cellgraph.kernels.layout import SIZES
from cellgraph.kernels.plan import Plan, Product
from cellgraph.kernels.writer import Writer
from cellgraph.printing import equations, render
from cellgraph.stages import is_block


@dataclass(frozen=True)
class Text:
    """A cell as C. `identity` is the same for cells that differ in names alone, which are one
    library; its text is what the compiler would get of a cell without names."""

    plan: Plan
    identity: str
    number: str

    @property
    def forward(self) -> str:
        """The name of the forward function."""
        return f"forward_{self.number}"

    @property
    def backward(self) -> str:
        """The name of the backward function."""
        return f"backward_{self.number}"

    def source(self) -> str:
        """The C text, under the cell's own names."""
        return _Printer(self.plan, named=True).source(self.number)

    def unit(self) -> compiler.Source:
        """For the compiler. The name is part of a path: a digest, nothing of the user's, the same
        for all cells that are the same code (those that differ in starts alone, for example)."""
        return compiler.Source(self.number, self.source, self.identity, compiler.QUICK)


def emit(plan: Plan) -> Text:
    """The two functions of a plan."""
    identity = _Printer(plan, named=False).source("0")
    return Text(plan, identity, hashlib.sha256(identity.encode()).hexdigest()[:16])


class _Printer(Writer):
    # -- the file

    def source(self, number: str) -> str:
        self.number = number
        self.header()
        head, self.lines = self.lines, []
        self.function("forward", number, self.layout.forward, self.forward)
        self.put("")
        self.values.clear()
        self.function("backward", number, self.layout.backward, self.backward)
        return "\n".join([*head, *self.loops, *self.lines]) + "\n"

    def header(self) -> None:
        cell = self.core.cell
        if self.explained:
            lines = [f"{left} = {right}" for left, right in equations(cell)]
            self.put(f"/* cell {cell.name}", *(f"       {line}" for line in lines), "*/")
        self.put('#include "cell.h"', "")

    def function(
        self, kind: str, number: str, pointers: Sequence[str], body: Callable[[], None]
    ) -> None:
        self.put(
            f"GLUE void {kind}_{number}(const Matrix *matrix, const long *size, void *const *at)"
        )
        self.put("{")
        self.depth = 1
        names = (*SIZES, *(self.width[w] for w in self.layout.widths))
        for index, name in enumerate(names):
            self.put(f"const long {name} = size[{index}];")
        for name in self.width.values():
            self.put(f"const long {name}_ = padded({name});")
        notes = self.notes()
        for index, name in enumerate(pointers):
            kind_ = {
                "starts": "const long *const",
                "tokens": "const long *const",
                "tape": "real *const",
                "room": "real *",
            }
            writes = name.startswith(("last", "history", "d", "y")) and name != "dy"
            constant = not writes or name.startswith("dlast")
            what = kind_.get(name, "const real *const" if constant else "real *const")
            self.put(f"{what} {name} = at[{index}];{notes.get(name, '')}")
        offset = "0"
        for index, width in enumerate(self.plan.columns):
            self.put(f"const long column{index} = {offset};{notes.get(f'column{index}', '')}")
            offset = f"column{index} + {self.width[width]}"
        for index in range(self.layout.statics):
            leaf = self.core.statics[index]
            if (of := self.core.width[leaf]) is None:
                self.put(f"const real s{index} = *static{index};")
            else:
                length = self.width[of]
                self.put(f"const real *const s{index} = whole(static{index}, {length}, &room);")
        body()
        self.close()

    def notes(self) -> dict[str, str]:
        """Comments for what only has a number."""
        if not self.explained:
            return {}
        core, label = self.core, self.labels
        meaning = {f"x{i}": shown(leaf, label) for i, leaf in enumerate(core.rows)}
        meaning |= {f"history{i}": s.name for i, s in enumerate(core.cell.states)}
        meaning |= {f"matrix{i}": name for i, name in enumerate(core.matrices())}
        meaning |= {f"static{i}": shown(leaf, label) for i, leaf in enumerate(core.statics)}
        kept: dict[str, list[str]] = {}
        for index, block in enumerate(self.plan.blocks):
            kept[f"column{index}"] = [label[block.leaf]]
        for node, place in self.plan.place.items():
            if place.kind == "tape" and not is_block(node):
                kept.setdefault(f"column{place.index}", []).append(render(node, label))
        meaning |= {name: ", then ".join(values) for name, values in kept.items()}
        return {name: self.explain(text) for name, text in meaning.items()}

    # -- forward

    def forward(self) -> None:
        plan = self.plan
        tags: list[tuple[str, Product]] = []
        for product in (*plan.hoisted, *(p for phase in plan.forward for p in phase.products)):
            tags.append((f"packed{len(tags)}", product))
            self.pack(product, tags[-1][0], transposed=True)
        tag = iter(tags)
        for index, state in enumerate(self.core.cell.states):
            w = self.width[state.width]
            self.put(f"set_rows(history{index}, {w}_, first{index}, B, {w});")
        if plan.hoisted:
            self.put("real *const table = tokens ? part(&room, entries * row) : tape;")
        self.open("for (long from = 0; from < T; from += chunk)")
        self.put("const long to = from + chunk < T ? from + chunk : T;")
        self.put(f"const long at_from = {self.start('from')};")
        self.hoisted(tag)
        self.open("for (long t = from; t < to; t++)")
        self.step()
        self.put("real *const tape_t = tape + (at_t - at_from) * row;")
        self.histories()
        for phase in plan.forward:
            for product in phase.products:
                self.multiply(product, next(tag)[0], "n", *self.operand(product.operand))
            for loop in phase.loops:
                self.loop(loop)
        self.put(f"const long going = t + 1 < T ? {self.start('t + 2')} - at_t - n : 0;")
        for index, state in enumerate(self.core.cell.states):
            w = self.width[state.width]
            self.put(
                f"copy_rows(last{index} + going * {w}, {w}, after{index} + going * {w}_, {w}_, "
                f"n - going, {w});"
            )
        self.close(2)

    def hoisted(self, tag: Iterator[tuple[str, Product]]) -> None:
        """Products of row inputs: for all rows of the chunk, or once for every entry of a table
        and then copied to the rows that look them up."""
        products = self.plan.hoisted
        if not products:
            return
        self.put(f"const long rows = {self.start('to')} - at_from;")
        self.open("if (!tokens || from == 0)")
        self.put("const long first = tokens ? 0 : at_from, m = tokens ? entries : rows;")
        for product in products:
            index = self.core.rows.index(product.operand)
            w = self.width[str(self.core.width[product.operand])]
            self.multiply(product, next(tag)[0], "m", f"x{index} + first * {w}", w, "table")
        self.close()
        self.open("if (tokens) for (long b = 0; b < rows; b++)")
        for product in products:
            if not product.accumulate:
                column = f"column{product.columns[0]}"
                self.put(
                    f"memcpy(tape + b * row + {column}, "
                    f"table + tokens[at_from + b] * row + {column}, "
                    f"{self.columns_of(product.columns)} * sizeof(real));"
                )
        self.close()

    # -- backward

    def backward(self) -> None:
        plan = self.plan
        states = self.core.cell.states
        for index, width in enumerate(plan.work):
            self.put(f"real *const work{index} = part(&room, B * {self.width[width]}_);")
        for index, state in enumerate(states):
            size = f"B * {self.width[state.width]}_"
            self.put(
                f"real *d_after{index} = part(&room, {size}), "
                f"*d_before{index} = part(&room, {size});"
            )
        for index, (_, name) in enumerate(plan.accumulated):
            w = f"{self.width[name]}_"
            self.put(f"real *const sum{index} = part(&room, {w});")
            self.put(f"memset(sum{index}, 0, {w} * sizeof(real));")
        tags: list[tuple[str, Product]] = []
        stepped = [p for phase in plan.backward for p in phase.products]
        for product in (*stepped, *plan.states_back):
            tags.append((f"packed{len(tags)}", product))
            self.pack(product, tags[-1][0], transposed=False)
        tag = iter(tags)
        self.open("for (long t = T - 1; t >= 0; t--)")
        self.step()
        self.put("real *const tape_t = tape + at_t * row;")
        self.histories()
        self.put(f"const long going = t + 1 < T ? {self.start('t + 2')} - at_t - n : 0;")
        for index, state in enumerate(states):
            w = self.width[state.width]
            self.put(
                f"set_rows(d_after{index} + going * {w}_, {w}_, "
                f"dlast{index} ? dlast{index} + going * {w} : NULL, n - going, {w});"
            )
        for phase in plan.backward:
            for product in phase.products:
                place = plan.scratch[product.operand]
                w = self.width[plan.work[place]]
                self.multiply_back(product, next(tag)[0], "n", "tape_t", f"work{place}", f"{w}_")
            for loop in phase.loops:
                self.loop(loop)
        self.states_back(tag)
        for index in range(len(states)):
            self.put(
                f"real *const swap{index} = d_after{index};",
                f"d_after{index} = d_before{index};",
                f"d_before{index} = swap{index};",
            )
        self.close()
        self.finish()

    def states_back(self, tag: Iterator[tuple[str, Product]]) -> None:
        """What the products of states add to their gradients; at t = 0 only if somebody asks."""
        plan = self.plan
        pointwise = dict.fromkeys(
            place.index
            for phase in plan.backward
            for loop in phase.loops
            for _, place in loop.stores
            if place.kind == "dstate"
        )
        for index, leaf in enumerate(plan.states):
            mine = [p for p in plan.states_back if p.operand is leaf]
            w = self.width[self.core.cell.states[index].width]
            if not mine and index not in pointwise:
                self.put(f"set_rows(d_before{index}, {w}_, NULL, n, {w});")
            if mine:
                self.open(f"if (t || dfirst{index})")
                for product in mine:
                    self.multiply_back(
                        product, next(tag)[0], "n", "tape_t", f"d_before{index}", f"{w}_"
                    )
                self.close()

    def finish(self) -> None:
        """After the loop: gradients of first states, row inputs, matrices and static values."""
        plan, core = self.plan, self.core
        for index, state in enumerate(core.cell.states):
            w = self.width[state.width]
            self.put(
                f"if (dfirst{index})",
                f"    copy_rows(dfirst{index}, {w}, d_after{index}, {w}_, B, {w});",
            )
        self.put(f"const long rows = {self.start('T')};")
        if plan.rows_back:
            self.gather_table()
        for number, product in enumerate(plan.rows_back):
            index = core.rows.index(product.operand)
            w = self.width[str(core.width[product.operand])]
            self.open(f"if (dx{index})")
            self.pack(product, f"packed_x{number}", transposed=False)
            self.multiply_back(product, f"packed_x{number}", "m", "table", f"dx{index}", w)
            self.close()
        for product in plan.gradients:
            self.weights(product)
        for column, leaf in plan.sums:
            index = core.statics.index(leaf)
            w = self.width[plan.columns[column]]
            self.put(
                f"if (dstatic{index})",
                f"    matrix->column_sums(rows, {w}, tape + column{column}, row, "
                f"dstatic{index}, 0);",
            )
        self.static_sums()

    def gather_table(self) -> None:
        """Gradients of the sums of row inputs; of a table, added up over the rows of an entry."""
        self.put("const long m = tokens ? entries : rows;")
        self.put("real *const table = tokens ? part(&room, entries * row) : tape;")
        self.open("if (tokens)")
        self.put("memset(table, 0, entries * row * sizeof(real));")
        self.open("for (long r = 0; r < rows; r++)")
        columns = sorted({c for p in self.plan.rows_back for c in p.columns})
        for _, run in groupby(enumerate(columns), lambda pair: pair[1] - pair[0]):
            neighbours = [column for _, column in run]
            self.put(
                f"add_row(table + tokens[r] * row + column{neighbours[0]}, "
                f"tape + r * row + column{neighbours[0]}, {self.columns_of(neighbours)});"
            )
        self.close(2)

    def static_sums(self) -> None:
        core = self.core
        begun: dict[int, None] = {}
        for place, (leaf, name) in enumerate(self.plan.accumulated):
            index, w = core.statics.index(leaf), self.width[name]
            self.open(f"if (dstatic{index})")
            if core.width[leaf] is None:
                if index not in begun:
                    self.put(f"*dstatic{index} = 0;")
                begun[index] = None
                self.put(
                    f"for (long j = 0; j < {w}; j++)", f"    *dstatic{index} += sum{place}[j];"
                )
            else:
                self.put(f"memcpy(dstatic{index}, sum{place}, {w} * sizeof(real));")
            self.close()

    def weights(self, product: Product) -> None:
        """Gradients of the matrices that multiply one operand."""
        plan, core = self.plan, self.core
        count = len(product.matrices)
        k = self.width[str(core.width[product.operand])]
        self.put("{")
        self.depth += 1
        index = plan.states.index(product.operand) if product.operand in plan.states else None
        of_rows = product.operand in core.rows
        tape = "table" if of_rows else "tape"
        columns = ", ".join(f"{tape} + column{c}" for c in product.columns)
        widths = ", ".join(self.width[plan.columns[c]] for c in product.columns)
        targets = ", ".join(f"d{self.matrix(m)}" for m in product.matrices)
        flags = ", ".join([str(int(product.accumulate))] * count)
        place = plan.place.get(product.operand)
        self.put(
            f"const real *a[] = {{{columns}}};",
            f"const long outs[] = {{{widths}}};",
            f"real *const c[] = {{{targets}}};",
            f"int add[] = {{{flags}}};",
        )
        call = "matrix->gradients({}, {}, a, outs, row, {}, {}, {}, c, add, room);"
        if index is not None:
            self.put("if (!starts)")
            self.put("    " + call.format(count, "rows", f"history{index}", k, f"{k}_"))
            self.open("else for (long t = 0; t < T; t++)")
            self.put("const long n = starts[t + 1] - starts[t];")
            before = f"history{index} + (t ? B + starts[t - 1] : 0) * {k}_"
            self.put(call.format(count, "n", before, k, f"{k}_"))
            self.put(f"for (int i = 0; i < {count}; i++) {{")
            self.put("    a[i] += n * row;", "    add[i] = 1;", "}")
            self.close()
        elif place is None:
            self.put(call.format(count, "m", f"x{core.rows.index(product.operand)}", k, k))
        elif place.kind == "next":
            where = f"history{place.index} + B * {k}_"
            self.put(call.format(count, "rows", where, k, f"{k}_"))
        else:
            self.put(call.format(count, "rows", f"tape + column{place.index}", k, "row"))
        self.close()
