"""How the arguments of a compiled cell are laid out: for `emit.py`, which prints the functions, and
for `native.py`, which calls them."""

from __future__ import annotations

from dataclasses import dataclass

from cellgraph.kernels.plan import Plan

SIZES = ("T", "B", "entries", "chunk", "recording", "row")  # then one for every width
FIXED = ("starts", "tokens", "tape", "room", "y")  # pointers common to both directions, then:


@dataclass(frozen=True)
class Layout:
    """The arguments of a kernel, by position.

    `widths` follow SIZES in the array of sizes. Pointers come in the order of the fields below;
    those of the backward pass have the forward's in front of them.
    """

    widths: tuple[str, ...]
    rows: int
    states: int
    matrices: int
    statics: int

    @property
    def forward(self) -> list[str]:
        return [
            *FIXED,
            *(f"x{i}" for i in range(self.rows)),
            *(f"first{i}" for i in range(self.states)),
            *(f"last{i}" for i in range(self.states)),
            *(f"history{i}" for i in range(self.states)),
            *(f"matrix{i}" for i in range(self.matrices)),
            *(f"static{i}" for i in range(self.statics)),
        ]

    @property
    def backward(self) -> list[str]:
        return [
            *self.forward,
            "dy",
            *(f"dx{i}" for i in range(self.rows)),
            *(f"dfirst{i}" for i in range(self.states)),
            *(f"dlast{i}" for i in range(self.states)),
            *(f"dmatrix{i}" for i in range(self.matrices)),
            *(f"dstatic{i}" for i in range(self.statics)),
        ]


def layout(plan: Plan) -> Layout:
    """How the arguments of a plan's kernels are laid out."""
    core = plan.core
    return Layout(
        plan.widths,
        len(core.rows),
        len(core.cell.states),
        len(core.matrices()),
        len(core.statics),
    )
