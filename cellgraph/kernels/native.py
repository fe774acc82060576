"""The native backend: a plan as compiled C, called on tensors, with its gradient.

One call of a compiled function computes a whole sequence, forward or backward; nothing of Python
happens between time steps. What the backward pass needs stays in one buffer, the tape, which it
overwrites with gradients: whoever goes back twice through one sequence (`retain_graph=True`) pays
for a second forward pass. Letters: T time steps, B batch rows, R rows of all steps together (T·B,
or fewer where sequences differ in length), X input width.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cellgraph.errors import CellError
from cellgraph.graph import CellGraph, Node, topological
from cellgraph.interpret import values
from cellgraph.kernels import compiler
from cellgraph.kernels.emit import emit
from cellgraph.kernels.layout import SIZES, Layout, layout
from cellgraph.kernels.matrix import Matrices
from cellgraph.kernels.plan import Plan, Product
from cellgraph.kernels.planner import plan
from cellgraph.kernels.tensors import checked, fits, plain

DTYPES = (torch.float32, torch.float64)
CHUNK_ROWS = 64  #: rows of hoisted products that a pass without gradients computes at a time


class Batch(NamedTuple):
    """The rows of a sequence: B at most a step, fewer as sequences end; `starts` (T + 1) int64.

    With `tokens` (R,) int64 the row inputs are tables of `entries` rows, from which the rows of
    the sequence are looked up.
    """

    steps: int
    rows: int
    starts: Tensor | None = None
    tokens: Tensor | None = None
    entries: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of rows, without their width: (T, B), or (R,) where sequences differ in length."""
        return (self.steps, self.rows) if self.starts is None else (self.total,)

    @property
    def total(self) -> int:
        """R."""
        return self.steps * self.rows if self.starts is None else int(self.starts[-1])


@dataclass(frozen=True)
class _Sizes:
    """Everything about one shape of call."""

    array: Any  # ctypes long[]
    tape: int  # elements
    histories: tuple[int, ...]  # elements of each
    shapes: tuple[tuple[int, ...], ...]  # of the tensors of a call
    output: tuple[int, ...]
    last: tuple[tuple[int, ...], ...]
    room: int
    room_back: int


class Memory(NamedTuple):
    """What the forward and the backward call of one sequence share."""

    batch: Batch
    given: Sequence[int]  # addresses of the tensors of a call
    kept: Tensor
    sizes: _Sizes
    room: Tensor


class Outcome(NamedTuple):
    """What a forward call returns. `kept` holds tape and histories, laid out as `sizes` says."""

    output: Tensor
    last: tuple[Tensor, ...]  # (1, B, ·) each
    kept: Tensor
    sizes: _Sizes


def prepare(cells: Sequence[CellGraph], dtype: torch.dtype = torch.float32) -> None:
    """Compile many cells in one run of the compiler, a few times faster than one by one; those
    that the cache has are only loaded. Raises `CompilerError`."""
    units = [emit(plan(cell)).unit() for cell in cells]
    compiler.load(units, double=dtype == torch.float64)


class Kernel:
    """The compiled functions of one cell for one real type."""

    def __init__(self, cell: CellGraph, dtype: torch.dtype) -> None:
        """Raises `CompilerError`."""
        self.dtype = dtype
        self.plan: Plan = plan(cell)
        self.layout: Layout = layout(self.plan)
        self.matrices = Matrices(double=dtype == torch.float64)
        text = emit(self.plan)
        (library,) = compiler.load([text.unit()], double=dtype == torch.float64)
        self.forward_code = getattr(library, text.forward)
        self.backward_code = getattr(library, text.backward)
        self.forward_code.restype = self.backward_code.restype = None
        self._pack_forward = struct.Struct(f"{len(self.layout.forward)}P").pack
        self._pack_backward = struct.Struct(f"{len(self.layout.backward)}P").pack
        self._sizes: dict[tuple[Any, ...], _Sizes] = {}
        cores = self.plan.core
        self.row_widths = [str(cores.width[r]) for r in cores.rows]
        self.state_widths = [s.width for s in cores.cell.states]
        self.output_width = str(cores.width[cores.output])
        self.matrix_names = cores.matrices()
        self.axes = self._find_axes()
        self.width_sources = self._find_widths()
        self._written, self._written_looked_up = self._find_written()
        self.ahead = topological(cores.prelude.values())
        # Matrices and statics: the name of a parameter, or what is computed of parameters alone.
        self.params: list[tuple[str, Node | None]] = [(name, None) for name in self.matrix_names]
        self.params += [(str(leaf.attr), cores.prelude.get(leaf)) for leaf in cores.statics]

    def tensors(
        self, params: Mapping[str, Tensor], x: Tensor, state: Sequence[Tensor]
    ) -> list[Tensor]:
        """What a call takes: rows, first states, matrices, statics, contiguous."""
        rows = self.plan.core.rows
        if not self.ahead:
            found = [x] * len(rows)
            found += state
            found += [params[name] for name, _ in self.params]
        else:  # once a sequence: values of parameters alone, and of the rows of x
            ahead = values(self.ahead, params, x, {})
            prelude = self.plan.core.prelude
            found = [ahead[prelude[row]] if row in prelude else x for row in rows]
            found += state
            found += [params[name] if node is None else ahead[node] for name, node in self.params]
        return [t.contiguous() for t in found]

    # -- sizes

    def _find_axes(self) -> list[tuple[str, ...]]:
        """For every tensor of a call: its rows or a width for each axis, counted from the last."""
        cores = self.plan.core
        params = {p.name: p for p in cores.cell.params}
        axes: list[tuple[str, ...]] = [("(R)", name) for name in self.row_widths]
        axes += [("(B)", name) for name in self.state_widths]
        axes += [(str(params[m].rows), str(params[m].cols)) for m in self.matrix_names]
        axes += [() if (w := cores.width[leaf]) is None else (w,) for leaf in cores.statics]
        return axes

    def _find_widths(self) -> dict[str, tuple[int, int]]:
        """For every width: which of the tensors of a call has it, in which axis."""
        found: dict[str, tuple[int, int]] = {}
        for at, names in enumerate(self.axes):
            for axis, name in enumerate(names):
                if name not in ("(R)", "(B)"):
                    found.setdefault(name, (at, axis - len(names)))
        return found

    def _find_written(self) -> tuple[list[bool], list[bool]]:
        """Which gradients, if wanted, are written whole: nothing reaches the others, or everything
        is added to them. Without tokens and with them."""
        cores, adjoint = self.plan.core, self.plan.adjoint
        summed = {leaf for _, leaf in self.plan.sums}
        summed |= {leaf for leaf, _ in self.plan.accumulated}
        others = [True] * (len(self.state_widths) + len(self.matrix_names))
        others += [leaf in summed for leaf in cores.statics]
        products = {p.operand for p in self.plan.rows_back}
        rows = [row in products or row in adjoint.rows for row in cores.rows]
        # Of a table, entries that no row looks up keep a zero.
        looked_up = [row in products and row not in adjoint.rows for row in cores.rows]
        return rows + others, looked_up + others

    def written(self, batch: Batch) -> list[bool]:
        """Which gradients a backward call writes; it adds to the others, which start as zeros."""
        return self._written if batch.tokens is None else self._written_looked_up

    def sizes(self, batch: Batch, widths: Mapping[str, int], recording: bool) -> _Sizes:
        """How large everything is for a call; remembered."""
        wanted = tuple(widths[w] for w in self.layout.widths)
        key = (batch.steps, batch.rows, batch.total, batch.entries, recording, wanted)
        found = self._sizes.get(key)
        if found is None:
            if len(self._sizes) > 256:  # lengths of real sentences come in thousands of shapes
                self._sizes.clear()
            found = self._sizes[key] = self._measure(batch, dict(widths), recording)
        return found

    def _measure(self, batch: Batch, widths: dict[str, int], recording: bool) -> _Sizes:
        lanes = self.matrices.lanes

        def whole(n: int) -> int:  # vectors
            return -(-n // lanes) * lanes

        wide = {w: whole(n) for w, n in widths.items()}
        plan_ = self.plan
        row = whole(sum(widths[w] for w in plan_.columns))
        if row * self.dtype.itemsize % 2048 == 0:
            row += lanes  # rows a power of two apart fall into the same few sets of the cache
        chunk = batch.steps if recording else max(1, CHUNK_ROWS // batch.rows)
        chunk = min(chunk, batch.steps)
        size = {"T": batch.steps, "B": batch.rows, "entries": batch.entries}
        size |= {"chunk": chunk, "recording": int(recording), "row": row}
        array = [*(size[name] for name in SIZES), *(widths[w] for w in self.layout.widths)]
        table = batch.entries * row
        tape_rows = batch.total if recording else chunk * batch.rows
        history_rows = batch.total + batch.rows if recording else 2 * batch.rows
        width_of = plan_.adjoint.width
        statics = sum(wide[str(w)] for n in plan_.core.statics if (w := width_of[n]) is not None)

        def packed(product: Product, *, transposed: bool) -> int:
            m = sum(widths[plan_.columns[c]] for c in product.columns)
            n = widths[str(width_of[product.operand])]
            return n * whole(m) if transposed else m * whole(n)

        rows = (batch.entries,) if batch.entries else batch.shape
        axes = {"(R)": rows, "(B)": (1, batch.rows)} | {w: (n,) for w, n in widths.items()}
        ahead = [*plan_.hoisted, *(p for phase in plan_.forward for p in phase.products)]
        back = [p for phase in plan_.backward for p in phase.products]
        back += [*plan_.states_back, *plan_.rows_back]
        room_back = statics + table + sum(packed(p, transposed=False) for p in back)
        room_back += batch.rows * sum(wide[w] for w in plan_.work)
        room_back += 2 * batch.rows * sum(wide[w] for w in self.state_widths)
        room_back += sum(wide[w] for _, w in plan_.accumulated)
        room_back += max(
            (
                self.matrices.gradients_work(
                    [widths[plan_.columns[c]] for c in p.columns],
                    widths[str(width_of[p.operand])],
                    max(batch.total, batch.entries),
                )
                for p in plan_.gradients
            ),
            default=0,
        )
        return _Sizes(
            array=(ctypes.c_long * len(array))(*array),
            tape=tape_rows * row + lanes,  # the last vector of the last column may reach behind it
            histories=tuple(history_rows * wide[w] for w in self.state_widths),
            shapes=tuple(sum((axes[name] for name in names), ()) for names in self.axes),
            output=(*batch.shape, widths[self.output_width]),
            last=tuple((1, batch.rows, widths[w]) for w in self.state_widths),
            room=statics + table + sum(packed(p, transposed=True) for p in ahead),
            room_back=room_back,
        )

    def widths(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """Concrete widths, read off the tensors."""
        return {name: tensors[at].shape[axis] for name, (at, axis) in self.width_sources.items()}

    # -- calls: what is done here is done in every step of a training, with cold caches

    def forward(self, batch: Batch, tensors: Sequence[Tensor], recording: bool) -> Outcome:
        """`tensors`: row inputs (T, B, ·), or (R, ·), or tables; first states (1, B, ·); matrices;
        statics."""
        sizes = self.sizes(batch, self.widths(tensors), recording)
        given = self.addresses(tensors, sizes)
        x = tensors[0]
        output = x.new_empty(sizes.output)
        last = tuple([x.new_empty(shape) for shape in sizes.last])
        kept = x.new_empty(sizes.tape + sum(sizes.histories))
        room = x.new_empty(sizes.room)
        self.forward_code(*self.call(Memory(batch, given, kept, sizes, room), output, last))
        return Outcome(output, last, kept, sizes)

    def addresses(self, tensors: Sequence[Tensor], sizes: _Sizes) -> list[int]:
        """C reads through bare addresses: what does not fit would be any bytes that lie there."""
        dtype, found = self.dtype, []
        for tensor, shape in zip(tensors, sizes.shapes, strict=True):
            if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_cpu:
                raise CellError(
                    f"a tensor of the cell is {tensor.dtype} of shape {tuple(tensor.shape)} on "
                    f"{tensor.device}, expected {dtype} of shape {shape} on cpu"
                )
            found.append(tensor.data_ptr())
        return found

    def call(self, memory: Memory, output: Tensor, last: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments of `forward_code`."""
        packed = self._pack_forward(*self._pointers(memory, output, last))
        return self.matrices.pointer, memory.sizes.array, packed

    def call_back(
        self,
        memory: Memory,
        output: Tensor,
        grads: Sequence[Tensor | None],
        lasts: Sequence[Tensor | None],
    ) -> tuple[Any, ...]:
        """The arguments of `backward_code`: gradients of the output, of the tensors of the call and
        of the last states."""
        ahead = self.layout.rows + self.layout.states
        addresses = [0 if g is None else g.data_ptr() for g in grads]
        pointers = [
            *self._pointers(memory, None, [None] * len(lasts)),
            output.data_ptr(),
            *addresses[:ahead],
            *[0 if t is None else t.data_ptr() for t in lasts],
            *addresses[ahead:],
        ]
        return self.matrices.pointer, memory.sizes.array, self._pack_backward(*pointers)

    def _pointers(
        self, memory: Memory, output: Tensor | None, last: Sequence[Tensor | None]
    ) -> list[int]:
        batch, given, kept, sizes, room = memory
        ahead = self.layout.rows + self.layout.states
        tape = kept.data_ptr()
        histories, at = [], tape + sizes.tape * self.dtype.itemsize
        for size in sizes.histories:
            histories.append(at)
            at += size * self.dtype.itemsize
        return [
            0 if batch.starts is None else batch.starts.data_ptr(),
            0 if batch.tokens is None else batch.tokens.data_ptr(),
            tape,
            room.data_ptr(),
            0 if output is None else output.data_ptr(),
            *given[:ahead],
            *[0 if t is None else t.data_ptr() for t in last],
            *histories,
            *given[ahead:],
        ]

    def backward(
        self,
        batch: Batch,
        tensors: Sequence[Tensor],
        kept: Tensor,
        sizes: _Sizes,
        wanted: Sequence[bool],
        output: Tensor | None,
        last: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Gradients of `tensors`, where wanted; `kept` is consumed, which `forward` left."""
        # A parameter that was given other memory since (`layer.float()`) is saved as it is now.
        given = self.addresses(tensors, sizes)
        x = tensors[0]
        output = _gradient(output, x, "output")
        lasts = [_gradient(t, x, "last state") for t in last]
        if output is None:
            output = x.new_zeros(sizes.output)
        written = self.written(batch)
        grads = [
            (torch.empty_like(t) if whole else torch.zeros_like(t)) if want else None
            for t, want, whole in zip(tensors, wanted, written, strict=True)
        ]
        room = x.new_empty(sizes.room_back)
        memory = Memory(batch, given, kept, sizes, room)
        self.backward_code(*self.call_back(memory, output, grads, lasts))
        return grads


class _Sequence(torch.autograd.Function):
    """A kernel as a differentiable function of its tensors."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, batch: Batch, *tensors: Tensor) -> tuple[Tensor, ...]:
        output, last, kept, sizes = kernel.forward(batch, tensors, recording=True)
        ctx.call, ctx.consumed = (kernel, batch, sizes), False
        # Saved as what torch knows of, so that checkpoints drop it and hooks move it elsewhere.
        ctx.save_for_backward(kept, *tensors)
        ctx.set_materialize_grads(False)
        return (output, *last)

    @staticmethod
    def backward(ctx: Any, output: Tensor | None, *last: Tensor | None) -> Any:
        (kept, *tensors), (kernel, batch, sizes) = ctx.saved_tensors, ctx.call
        # A second time through the same graph, or after hooks that give back something else.
        if ctx.consumed or not fits(kept, kernel.dtype, sizes.tape + sum(sizes.histories)):
            kept = kernel.forward(batch, tensors, recording=True).kept
        ctx.consumed = True
        wanted = ctx.needs_input_grad[2:]
        if not torch.is_grad_enabled():
            grads = kernel.backward(batch, tensors, kept, sizes, wanted, output, last)
        else:  # create_graph=True
            with torch.no_grad():
                grads = kernel.backward(batch, tensors, kept, sizes, wanted, output, last)
            made = [g for g in grads if g is not None]
            given = [t for t in (output, *last, *tensors) if t is not None]
            final = iter(_Final.apply(len(made), *made, *given))  # type: ignore[no-untyped-call]
            grads = [None if g is None else next(final) for g in grads]
        return (None, None, *grads)


class _Final(torch.autograd.Function):
    """Gradients that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise CellError(
            "the native backend has no second derivatives, "
            'expected a layer compiled with backend="eager"'
        )


class Runner:
    """The native backend for one cell; see `eager.Runner` for the meaning of a call."""

    def __init__(self, cell: CellGraph) -> None:
        self.cell = cell
        self._kernels: dict[torch.dtype, Kernel] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self.cell,)

    def __deepcopy__(self, memo: object) -> Runner:
        return self

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """The compiled cell. Raises `CompilerError`."""
        found = self._kernels.get(dtype)
        if found is None:  # without a lock, which a fork could leave closed: two are no harm
            found = self._kernels.setdefault(dtype, Kernel(self.cell, dtype))
        return found

    def __call__(
        self,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        kernel = self.kernel(x.dtype)
        if tokens is None and mask is None:
            return self._rows(kernel, Batch(x.shape[0], x.shape[1]), params, x, state)
        steps, rows = x.shape[:2] if tokens is None else tokens.shape
        if tokens is not None and looks_up(tokens, x.shape[0]):
            batch = Batch(steps, rows, None, checked(tokens, x.shape[0]), x.shape[0])
            return self._rows(kernel, batch, params, x, state)
        if tokens is not None:
            x = torch.nn.functional.embedding(tokens, x)
        if mask is None:
            return self._rows(kernel, Batch(steps, rows), params, x, state)
        # Longest first, so that the rows of a step are the first ones of the step before.
        lengths = mask[..., 0].sum(0)
        order = lengths.argsort(descending=True, stable=True)
        going = mask[:, order, 0]  # (T, B)
        starts = torch.nn.functional.pad(going.sum(1).cumsum(0), (1, 0))
        step, column = going.nonzero(as_tuple=True)
        index = step * rows + order[column]  # (R,)
        batch = Batch(steps, rows, starts.contiguous())
        flat = x.reshape(steps * rows, x.shape[2])
        firsts = [s.index_select(1, order) for s in state]
        y, last = self._rows(kernel, batch, params, flat.index_select(0, index), firsts)
        y = y.new_zeros(steps * rows, y.shape[1]).index_copy(0, index, y)
        back = order.argsort()
        return y.view(steps, rows, y.shape[1]), tuple(s.index_select(1, back) for s in last)

    def _rows(
        self,
        kernel: Kernel,
        batch: Batch,
        params: Mapping[str, Tensor],
        x: Tensor,
        state: Sequence[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        tensors = kernel.tensors(params, x, state)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            made = _Sequence.apply(kernel, batch, *tensors)  # type: ignore[no-untyped-call]
            return made[0], made[1:]
        output, last, _, _ = kernel.forward(batch, tensors, recording=False)
        return output, last


def looks_up(tokens: Tensor, entries: int) -> bool:
    """Are tokens looked up behind the first products of a table, rather than before them? Looking
    up sums instead of rows costs a pass over them: it has to save more than that."""
    return 2 * entries <= tokens.numel()


def _gradient(given: Tensor | None, x: Tensor, name: str) -> Tensor | None:
    """An incoming gradient as contiguous memory. Raises `CellError` where it has none."""
    if given is None:
        return None
    if given._is_zerotensor():
        return x.new_zeros(given.shape)
    if given.is_neg():
        given = given.resolve_neg()
    if not plain(given) or given.dtype != x.dtype or not given.is_cpu:
        raise CellError(
            f"the native backend cannot use the gradient of the {name} (batched, or of another "
            'type), expected a layer compiled with backend="eager"'
        )
    return given.contiguous()
