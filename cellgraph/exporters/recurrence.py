"""The recurrence of a cell as lines of Python: what runs over a whole sequence, and the loop.

Made from the schedule (`cellgraph.schedule`), so that an export hoists what the eager backend
hoists. Values keep the names that the text gives them; the rest are named after what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from cellgraph.exporters.plan import Instruction, Plan, outs
from cellgraph.exporters.source import (
    COLUMNS,
    INDENT,
    Names,
    Number,
    Source,
    assignment,
    attribute,
    wrapped,
)
from cellgraph.graph import CellGraph, format_number
from cellgraph.ops import OPS
from cellgraph.schedule import Pointwise, Product, lower


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The lines of the forward of one layer, for `x` (T, B, X) and states (B, width).

    `arguments` name the previous states and, after the loop, the last ones. `before` runs once;
    `loop` runs over time, and is empty when no state ever changes; `result` is the expression of
    the outputs (T, B, H), for which the loop appends to a list `outputs` if `collects`.
    """

    arguments: tuple[str, ...]
    before: tuple[str, ...]
    loop: tuple[str, ...]
    result: str
    collects: bool


def recurrence(cell: CellGraph) -> Recurrence:
    """The recurrence of a cell."""
    return _Writer(cell).write()


class _Writer:
    def __init__(self, cell: CellGraph) -> None:
        self.schedule = schedule = lower(cell)
        self.plan = Plan(schedule)
        self.rows = {p.name: p.rows for p in cell.params}
        self.params = {slot: name for name, slot in schedule.params}
        self.consts = {slot: format_number(value) for value, slot in schedule.consts}
        self.taken = Names(["self", "torch", "nn", "outputs", "x", "_"])
        self.constants: dict[str, str] = {}  # numbers that must be tensors: text -> local name
        self.skews = {name: self.taken.give(name) for name in cell.skews}  # -> local name
        self.weights: dict[Product, str] = {}  # stacked matrices …
        self.sizes: dict[Product, str] = {}  # … and their rows, where they differ
        self.local = dict.fromkeys(schedule.inputs, "x")
        self.arguments = tuple(self.taken.give(state) for state, _ in schedule.nexts)
        previous = dict(schedule.states)
        for (state, _), local in zip(schedule.nexts, self.arguments, strict=True):
            if state in previous:
                self.local[previous[state]] = local
        self._name_nexts()
        self._name_lines()

    # -- names ----------------------------------------------------------------------------------

    def _name_nexts(self) -> None:
        """A next value takes over its state's name, unless something still reads the old value."""
        previous = dict(self.schedule.states)
        output = self.schedule.output
        for (state, slot), local in zip(self.schedule.nexts, self.arguments, strict=True):
            at = next((k for k, i in enumerate(self.plan.step) if slot in outs(i)), None)
            if at is None or slot in self.local:
                continue
            later = (*self.plan.reads(self.plan.step[at + 1 :]), *self.plan.ends, output)
            needed = previous.get(state, -1) in later
            self.local[slot] = self.taken.give(f"new_{local}") if needed else local

    def _name_lines(self) -> None:
        plan = self.plan
        program = [*plan.before, *plan.step]
        for slot in [slot for instruction in program for slot in outs(instruction)]:
            if slot in plan.names and slot not in self.local:
                self.local[slot] = self.taken.give(plan.names[slot].replace("'", "_next"))
        reader: dict[int, int] = {}
        for instruction in reversed(program):
            reader.update(dict.fromkeys(plan.reads([instruction]), outs(instruction)[0]))
        for instruction in program:
            for k, slot in enumerate(outs(instruction)):
                if slot not in self.local:
                    self.local[slot] = self.taken.give(self._description(instruction, k, reader))

    def _description(self, instruction: Instruction, k: int, reader: dict[int, int]) -> str:
        """A name for an unnamed value: matrix and operand, or whose part from x it is, or n1."""
        slot = outs(instruction)[k]
        if isinstance(instruction, Product) and len(instruction.outs) > 1:
            return f"{instruction.matrices[k]}_{self._label(instruction.operand)}"
        if slot in self.plan.timed and reader.get(slot) in self.local:
            return f"{self.local[reader[slot]]}_x"
        return next(name for i in count(1) if self.taken.free(name := f"n{i}"))

    def _label(self, slot: int) -> str:
        return self.params.get(slot) or self.local[slot]

    # -- expressions ----------------------------------------------------------------------------

    def _expression(self, slot: int) -> Source:
        if slot in self.local:
            return Source(self.local[slot])
        if slot in self.params:
            return Source(attribute(self.params[slot]))
        if slot in self.consts:
            return Number(self.consts[slot], lambda: self._constant(self.consts[slot]))
        return self._computed(self.plan.source[slot])

    def _computed(self, instruction: Instruction) -> Source:
        if isinstance(instruction, Pointwise):
            operands = [self._expression(a) for a in instruction.args]
            result: Source = OPS[instruction.op].eager(Source("torch"), *operands)
            return result
        weight = self.weights.get(instruction) or self._matrix(instruction.matrices[0])
        return Source("nn.functional.linear")(self._expression(instruction.operand), Source(weight))

    def _matrix(self, name: str) -> str:
        return self.skews.get(name) or attribute(name)

    def _constant(self, text: str) -> Source:
        if text not in self.constants:
            self.constants[text] = self.taken.give("constant")
        return Source(self.constants[text])

    # -- lines ----------------------------------------------------------------------------------

    def write(self) -> Recurrence:
        """All lines, in the order in which names come into being."""
        output, plan = self.schedule.output, self.plan
        before = []
        for instruction in plan.before:
            before += self._stack(instruction) + self._line(instruction)
        for instruction in plan.step:
            before += self._stack(instruction)
        result = "torch.stack(outputs)"
        if self.schedule.output_before:
            result = str(self._expression(output))
            if output not in plan.timed:
                result += ".expand(x.shape[0], x.shape[1], -1)"

        read = frozenset([*plan.reads(plan.step), *plan.ends])
        order = [*self.schedule.inputs, *(slot for i in plan.before for slot in outs(i))]
        carried = [slot for slot in order if slot in plan.timed and slot in read]
        series = [self.local[slot] for slot in carried]
        for slot in carried:
            self.local[slot] = self.taken.give(f"{self.local[slot]}_t")
        body = [line for instruction in plan.step for line in self._line(instruction)]
        if not self.schedule.output_before:
            body.append(f"outputs.append({self._expression(output)})")
        body += self._takeover()
        header = _header([self.local[slot] for slot in carried], series)
        constants = [f"{name} = x.new_tensor({text})" for text, name in self.constants.items()]
        skews = [
            f"{local} = {attribute(name)} - {attribute(name)}.T"
            for name, local in self.skews.items()
        ]
        return Recurrence(
            self.arguments,
            before=(*constants, *skews, *before),
            loop=(*header, *(f"    {line}" for line in body)) if body else (),
            result=result,
            collects=not self.schedule.output_before,
        )

    def _stack(self, instruction: Instruction) -> list[str]:
        """The matrices of a product on top of each other, where there are several."""
        if isinstance(instruction, Pointwise) or len(instruction.matrices) == 1:
            return []
        label = self._label(instruction.operand)
        name = self.weights[instruction] = self.taken.give(f"weight_{label}")
        matrices = [self._matrix(matrix) for matrix in instruction.matrices]
        lines = wrapped(f"{name} = torch.cat([", matrices, "])")
        if len({self.rows[matrix] for matrix in instruction.matrices}) > 1:
            name = self.sizes[instruction] = self.taken.give(f"rows_{label}")
            lines += wrapped(f"{name} = [", [f"{matrix}.shape[0]" for matrix in matrices], "]")
        return lines

    def _line(self, instruction: Instruction) -> list[str]:
        targets = [self.local[slot] for slot in outs(instruction)]
        value = self._computed(instruction)
        if isinstance(instruction, Product) and len(targets) > 1:
            if instruction in self.sizes:
                value = value.split(Source(self.sizes[instruction]), dim=-1)
            else:
                value = value.chunk(len(targets), dim=-1)
        return assignment(targets, str(value))

    def _takeover(self) -> list[str]:
        """The states whose next value goes by another name, all at once."""
        pairs = []
        for (_, slot), local in zip(self.schedule.nexts, self.arguments, strict=True):
            value = self._expression(slot)
            if slot in self.schedule.fixed:
                value = value.expand_as(Source(local))
            if str(value) != local:
                pairs.append((local, str(value)))
        if not pairs:
            return []
        return assignment([local for local, _ in pairs], ", ".join(value for _, value in pairs))


def _header(targets: Sequence[str], series: Iterable[str]) -> list[str]:
    """`for … in …:` over the values that have a time axis."""
    series = list(series)
    if not series:
        return ["for _ in range(x.shape[0]):"]
    if len(series) == 1:
        return [f"for {targets[0]} in {series[0]}:"]
    opening = f"for {', '.join(targets)} in zip("
    lines = wrapped(opening, [*series, "strict=True"], "):")
    if len(opening) <= COLUMNS - INDENT:
        return lines
    return ["for (", *(f"    {target}," for target in targets), ") in zip(", *lines[1:]]
