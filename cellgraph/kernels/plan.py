"""What a compiled cell computes when, and where it keeps what, as data: phases, loops, places.

A time step alternates matrix products and pointwise loops, one loop for every width. One row of
the tape holds, for one row of the batch at one step, the sums of all blocks and whatever else the
way back needs: columns without gaps, so that neighbours are one operand of a product. `planner.py`
makes a plan, `emit.py` prints it as C, `describe.py` in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellgraph.adjoint import Adjoint
from cellgraph.graph import STATE, Node
from cellgraph.stages import Block, Core


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies. `index` counts columns, states, row inputs or static values."""

    kind: str  # row state next tape static output | dy dnext dstate drow dstatic work
    index: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """Columns of the tape (neighbours) and an operand, over matrices.

    Forward the operand is multiplied into the columns; backward the columns into its gradient.
    """

    operand: Node
    matrices: tuple[str, ...]
    columns: tuple[int, ...]
    accumulate: bool


@dataclass(frozen=True, slots=True)
class Loop:
    """Pointwise work over one width: loads, then values in order, then stores."""

    width: str
    loads: tuple[tuple[Node, Place], ...]
    values: tuple[Node, ...]
    stores: tuple[tuple[Node, Place], ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """Products, then loops."""

    products: tuple[Product, ...]
    loops: tuple[Loop, ...]


@dataclass(frozen=True)
class Plan:
    """A cell ready to be printed as code."""

    core: Core
    adjoint: Adjoint
    columns: tuple[str, ...]  # widths of the columns of the tape; blocks come first
    work: tuple[str, ...]  # widths of the columns of one step's scratch rows
    hoisted: tuple[Product, ...]  # of row inputs, for all rows
    forward: tuple[Phase, ...]
    backward: tuple[Phase, ...]  # its last products are those of states, onto their gradients
    states_back: tuple[Product, ...]
    gradients: tuple[Product, ...]  # for weights: columns of gradients against an operand
    rows_back: tuple[Product, ...]  # gradients of row inputs
    sums: tuple[tuple[int, Node], ...]  # (column of gradients, static value it sums up to)
    accumulated: tuple[tuple[Node, str], ...]  # static values whose gradients the loops add up
    place: dict[Node, Place]  # of values of the forward pass
    scratch: dict[Node, int]  # inner operand's gradient -> scratch column
    blocks: tuple[Block, ...]  # in the order of their columns

    @property
    def widths(self) -> tuple[str, ...]:
        """The names of all widths that occur, in a fixed order."""
        core = self.core
        nodes = (*core.rows, *core.statics, core.output, *core.operands)
        named = (core.width[n] for n in nodes)
        found = [*self.columns, *self.work, *(s.width for s in core.cell.states), *named]
        return tuple(dict.fromkeys(w for w in found if w is not None))

    @property
    def states(self) -> tuple[Node, ...]:
        """The state leaves in the order of the cell's header."""
        return tuple(Node(STATE, (), s.name) for s in self.core.cell.states)
