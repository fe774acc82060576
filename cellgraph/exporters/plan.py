"""Which values of a schedule get a line of their own when it is written out, and in which order.

The order is that of the cell's text, as far as hoisting and grouping allow. No names and no source
code here; `recurrence.py` writes what this module plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cellgraph.exporters.source import Source
from cellgraph.ops import INFIX, OPS
from cellgraph.schedule import Pointwise, Product, Schedule

Instruction = Pointwise | Product

#: About as many characters on the right of a line; a longer expression is broken up …
LONGEST = 76
#: … where this many stand for a name that is not chosen yet.
NAME = 7


class Plan:
    """A schedule without fused additions, its instructions in the order of the text.

    `before` and `step` hold the instructions outside and inside the loop that get a line, `lines`
    their slots; `source` is the instruction of every computed slot, `names` what the text calls it.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.names = {slot: name for name, slot in reversed(schedule.names)}
        self.ends = tuple(slot for _, slot in schedule.nexts)
        slots = iter(range(schedule.size, 2 * schedule.size))
        before, step = _unfused(schedule.before, slots), _unfused(schedule.step, slots)
        self.source = {out: i for i in (*before, *step) for out in outs(i)}
        self.timed = timed(schedule, before)
        self.hoisted = frozenset(out for i in before for out in outs(i))
        before, step = in_text_order(schedule, before, step)
        self.source = {out: i for i in (*before, *step) for out in outs(i)}
        self.lines = self._lines([*before, *step], schedule.output)
        self.before = [i for i in before if outs(i)[0] in self.lines]
        self.step = [i for i in step if outs(i)[0] in self.lines]

    def reads(self, instructions: Iterable[Instruction]) -> list[int]:
        """The slots that stand by name in the lines of these instructions."""
        found: list[int] = []
        stack = [a for i in reversed(list(instructions)) for a in reversed(args(i))]
        while stack:
            arg = stack.pop()
            if arg in self.source and arg not in self.lines:
                stack.extend(reversed(args(self.source[arg])))
            else:
                found.append(arg)
        return found

    def _lines(self, program: Sequence[Instruction], output: int) -> frozenset[int]:
        """What the text names, what the loop hands on, what is used twice, and what is too long."""
        lines = {slot for slot in (*self.names, *self.ends, output) if slot in self.source}
        uses: dict[int, int] = {}
        for instruction in program:
            inside = outs(instruction)[0] not in self.hoisted
            for arg, times in zip(args(instruction), _times(instruction), strict=True):
                uses[arg] = uses.get(arg, 0) + times
                if arg in self.source and (uses[arg] > 1 or (inside and arg in self.hoisted)):
                    lines.add(arg)
            if len(outs(instruction)) > 1:
                lines.update(outs(instruction), (a for a in args(instruction) if a in self.source))
        length: dict[int, int] = {}
        for instruction in program:
            parts = {a: NAME if a in lines else length.get(a, NAME) for a in args(instruction)}
            total = _length(instruction) + sum(parts.values())
            for arg in sorted(parts, key=lambda a: -parts[a]):
                if total > LONGEST and arg in self.source and parts[arg] > NAME:
                    lines.add(arg)
                    total -= parts[arg] - NAME
            length.update(dict.fromkeys(outs(instruction), total))
        return frozenset(lines)


def outs(instruction: Instruction) -> tuple[int, ...]:
    """The slots that an instruction sets."""
    return (instruction.out,) if isinstance(instruction, Pointwise) else instruction.outs


def args(instruction: Instruction) -> tuple[int, ...]:
    """The slots that an instruction reads."""
    if isinstance(instruction, Pointwise):
        return instruction.args
    return (instruction.operand, *instruction.bases)


def needs(instruction: Instruction, slot: int) -> tuple[int, ...]:
    """The slots that an instruction reads for one of those it sets."""
    if isinstance(instruction, Pointwise):
        return instruction.args
    own = instruction.outs.index(slot)
    return (instruction.operand, *instruction.bases[own : own + 1])


def timed(schedule: Schedule, before: Iterable[Instruction]) -> frozenset[int]:
    """The slots with a time axis before the loop: x, and what depends on it but on no state."""
    found = set(schedule.inputs)
    for instruction in before:
        if any(a in found for a in args(instruction)):
            found.update(outs(instruction))
    return frozenset(found)


def _unfused(program: Iterable[Instruction], fresh: Iterator[int]) -> list[Instruction]:
    """`base + product` as an addition of its own, and one product for each operand."""
    plain: list[Instruction] = []
    where: dict[int, tuple[int, Product]] = {}  # operand -> the position of its product, and it
    for instruction in program:
        if isinstance(instruction, Pointwise):
            plain.append(instruction)
            continue
        product = instruction
        if product.bases:
            product = replace(product, outs=tuple(next(fresh) for _ in product.outs), bases=())
        parts = product.outs
        if product.operand in where:
            at, first = where[product.operand]
            matrices = first.matrices + product.matrices
            plain[at] = product = replace(first, matrices=matrices, outs=first.outs + parts)
        else:
            at = len(plain)
            plain.append(product)
        where[product.operand] = at, product
        add = INFIX["+", 2].name
        for base, part, out in zip(instruction.bases, parts, instruction.outs, strict=False):
            plain.append(Pointwise(add, (base, part), out))
    return plain


def in_text_order(
    schedule: Schedule, before: Sequence[Instruction], step: Sequence[Instruction]
) -> tuple[list[Instruction], list[Instruction]]:
    """The instructions outside and inside the loop in the order in which the text, line by line,
    needs what they set; and so the matrices of a product."""
    source = {out: i for i in (*before, *step) for out in outs(i)}
    rank: dict[int, int] = {}
    ends = (slot for _, slot in schedule.nexts)
    for root in (*(slot for _, slot in schedule.names), *ends, schedule.output):
        stack = [(root, False)]
        while stack:
            slot, done = stack.pop()
            if slot in rank or slot not in source:
                continue
            if done:
                rank[slot] = len(rank)
            else:
                stack.append((slot, True))
                stack.extend((a, False) for a in reversed(needs(source[slot], slot)))
    return _ordered(before, rank), _ordered(step, rank)


def _ordered(program: Iterable[Instruction], rank: dict[int, int]) -> list[Instruction]:
    """The instructions by rank, and by rank the matrices of a product.

    Whatever an instruction reads ranks below all it sets, so every order by rank can be run: what
    does not, a base of another sum, is known before the loop.
    """
    ordered: list[Instruction] = []
    for instruction in sorted(program, key=lambda i: min(rank[out] for out in outs(i))):
        if isinstance(instruction, Pointwise):
            ordered.append(instruction)
            continue
        order = sorted(range(len(instruction.outs)), key=lambda k: rank[instruction.outs[k]])
        ordered.append(
            Product(
                matrices=tuple(instruction.matrices[k] for k in order),
                operand=instruction.operand,
                outs=tuple(instruction.outs[k] for k in order),
                bases=tuple(instruction.bases[k] for k in order if instruction.bases),
            )
        )
    return ordered


def _times(instruction: Instruction) -> list[int]:
    """How often the source code of an op writes each of its arguments."""
    if isinstance(instruction, Product):
        return [1]
    marks = [f"__{i}__" for i in range(len(instruction.args))]
    text = str(OPS[instruction.op].eager(Source("t"), *map(Source, marks)))
    return [text.count(mark) for mark in marks]


def _length(instruction: Instruction) -> int:
    """The characters of an instruction's source code without its arguments."""
    if isinstance(instruction, Product):
        return len(f"nn.functional.linear(, self.{instruction.matrices[0]})")
    blank = [Source("")] * len(instruction.args)
    return len(str(OPS[instruction.op].eager(Source("torch"), *blank)))
