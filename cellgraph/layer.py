"""The layer: a cell as an nn.Module with the shapes and the state conventions of torch.nn.LSTM.

Parameters live in `parameters.py`, one `Cell` module per layer and direction; how a sequence is
computed is the backend's business.
Letters: T time steps, B batch rows, X input width, H output width, D directions, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from cellgraph.backends import BACKENDS, check_backend
from cellgraph.errors import CellError
from cellgraph.graph import CellGraph
from cellgraph.parameters import Cell
from cellgraph.sizes import concrete_widths, output_width, whole
from cellgraph.variants import with_projection, without_biases


class CellLayer(nn.Module):
    """A stack of recurrent layers of one cell; see `compile`."""

    def __init__(
        self,
        cell: CellGraph,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        backend: str,
        widths: Mapping[str, int] | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        bias: bool = True,
        proj_size: int = 0,
    ) -> None:
        super().__init__()
        self.cell, self.bias, self.proj_size = cell, bias, proj_size
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional, self.backend = (
            batch_first,
            dropout,
            bidirectional,
            backend,
        )
        self.directions = 2 if bidirectional else 1
        self.run = BACKENDS[backend](cell)
        factory = {"device": device, "dtype": dtype}
        self.cells = nn.ModuleList()
        entering = input_size
        for _ in range(num_layers):
            sizes = concrete_widths(cell, entering, hidden_size, widths)
            for _ in range(self.directions):
                self.cells.append(Cell(cell, entering, sizes, factory))
            entering = self.directions * sizes[output_width(cell)]
        self.output_size = entering
        self.state_sizes = tuple(sizes[s.width] for s in cell.states)
        self.reset_parameters()

    @property
    def fallback(self) -> str | None:
        """Why the layer runs as torch operations although it might be compiled; None otherwise."""
        return getattr(self.run, "fallback", None)

    def reset_parameters(
        self, scale: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        """Everything from U[-scale/√H, scale/√H] (Jozefowicz et al. 2015, section 3.3;
        torch.nn.LSTM has scale 1), then the starts that the cell declares with `init`."""
        for cell in cast("Iterable[Cell]", self.cells):
            cell.reset(scale / self.hidden_size**0.5, generator)

    def flatten_parameters(self) -> None:
        """Nothing: programs for torch.nn.LSTM call this, and here there is nothing to gather."""

    @property
    def widths(self) -> dict[str, int]:
        """The sizes of the widths that the cell declares beside H, by name."""
        sizes = zip(self.cell.states, self.state_sizes, strict=True)
        return {state.width: size for state, size in sizes if state.width != "H"}

    def extra_repr(self) -> str:
        options = [f"{self.cell.name}, {self.input_size}, {self.hidden_size}"]
        defaults = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
            "proj_size": 0,
        }
        options += [
            f"{k}={getattr(self, k)}"
            for k, default in defaults.items()
            if getattr(self, k) != default
        ]
        return ", ".join([*options, f"backend={self.backend}"])

    def forward(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Run a sequence.

        `x`: (T, B, X), (B, T, X) with batch_first, (T, X) without a batch, or a PackedSequence.
        `state`: None for zeros, else (L·D, B, width), or (L·D, width) without a batch: one tensor
        when the cell has one state, a tuple in the order of its header when it has several. Returns
        the outputs, (T, B, D·H) or in the form of x, and the last states in the form of `state`.
        Raises `CellError` for shapes that do not fit.
        """
        if isinstance(x, PackedSequence):
            return self._packed(x, state)
        if not isinstance(x, Tensor):
            raise CellError(f"x is a {type(x).__name__}, expected a tensor or a PackedSequence")
        batched = x.dim() == 3
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise CellError(
                f"x has shape {tuple(x.shape)}, expected (time, batch, {self.input_size})"
            )
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if not batched:
            x = x.unsqueeze(1)
        if x.shape[0] == 0:
            raise CellError("x has no time steps, expected at least one")
        y, last = self._run(x, self._enter_state(state, x, batched), None)
        if not batched:
            y, last = y.squeeze(1), tuple(s.squeeze(1) for s in last)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, self._leave_state(last)

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step, for streams: the same as a sequence of length 1.

        `x`: (B, X), or (X,) without a batch; `state` as in a call, and so is what comes back behind
        the output (B, H) or (H,). Raises `CellError` for shapes that do not fit, and for a layer
        in both directions, whose output would need the steps to come.
        """
        if self.bidirectional:
            raise CellError("a bidirectional layer cannot go step by step, expected one direction")
        if not isinstance(x, Tensor) or x.dim() not in (1, 2) or x.shape[-1] != self.input_size:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise CellError(f"x of a step is {found}, expected (batch, {self.input_size})")
        time = 1 if self.batch_first and x.dim() == 2 else 0
        y, last = self(x.unsqueeze(time), state)
        return y.squeeze(time), last

    def lookup(self, table: Tensor, tokens: Tensor, state: Any = None) -> tuple[Any, Any]:
        """The same as a call with x = table[tokens], and faster where tokens outnumber entries.

        `table` (V, X), such as the weight of an embedding; `tokens` (T, B) whole numbers below V,
        (B, T) with batch_first. What depends on x alone is then computed once for every entry.
        """
        whole_numbers = tokens.dtype in (torch.int32, torch.int64)
        if tokens.dim() != 2 or not whole_numbers or tokens.shape[0] == 0:
            raise CellError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, "
                "expected whole numbers (time, batch)"
            )
        if table.dim() != 2 or table.shape[1] != self.input_size:
            raise CellError(
                f"the table has shape {tuple(table.shape)}, expected (entries, {self.input_size})"
            )
        if self.batch_first:
            tokens = tokens.t()
        entered = self._enter_state(state, table, True, tokens.shape[1])
        y, last = self._run(table, entered, None, tokens)
        return y.transpose(0, 1) if self.batch_first else y, self._leave_state(last)

    def _packed(self, packed: PackedSequence, state: Any) -> tuple[PackedSequence, Any]:
        x, lengths = pad_packed_sequence(packed)  # (T, B, X) in the caller's order of sequences
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise CellError(
                f"the packed x has shape {tuple(x.shape)}, expected "
                f"(time, batch, {self.input_size})"
            )
        # Behind its end a sequence repeats its last step: the gradients of what is computed there
        # are zeros only while they are finite, and at x = 0 those of a root or a logarithm are not.
        steps = torch.minimum(torch.arange(x.shape[0])[:, None], lengths - 1).to(x.device)
        x = x.gather(0, steps.unsqueeze(-1).expand_as(x))
        y, last = self._run(x, self._enter_state(state, x, True), lengths.to(x.device))
        if packed.sorted_indices is not None:
            y, lengths = (
                y.index_select(1, packed.sorted_indices),
                lengths[packed.sorted_indices.cpu()],
            )
        out = pack_padded_sequence(y, lengths)
        return PackedSequence(
            out.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        ), self._leave_state(last)

    def _enter_state(
        self, state: Any, x: Tensor, batched: bool, rows: int | None = None
    ) -> tuple[Tensor, ...]:
        """One (L·D, B, width) tensor per state of the cell."""
        count, rows = self.num_layers * self.directions, x.shape[1] if rows is None else rows
        if state is None:
            return tuple(x.new_zeros(count, rows, size) for size in self.state_sizes)
        given = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        if len(given) != len(self.state_sizes) or not all(isinstance(s, Tensor) for s in given):
            kinds = ", ".join(type(s).__name__ for s in given) or "empty"
            names = ", ".join(s.name for s in self.cell.states)
            raise CellError(f"state is {kinds}, expected {len(self.state_sizes)} tensors: {names}")
        for value, declared, size in zip(given, self.cell.states, self.state_sizes, strict=True):
            expected = (count, rows, size) if batched else (count, size)
            if tuple(value.shape) != expected:
                raise CellError(
                    f"state {declared.name} has shape {tuple(value.shape)}, expected {expected}"
                )
            if value.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                raise CellError(
                    f"state {declared.name} is {value.dtype}, x {x.dtype}, expected equal types"
                )
        return given if batched else tuple(value.unsqueeze(1) for value in given)

    def _leave_state(self, last: tuple[Tensor, ...]) -> Any:
        return last[0] if len(last) == 1 else last

    def _run(
        self,
        x: Tensor,
        state: tuple[Tensor, ...],
        lengths: Tensor | None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (T, B, X) through all layers; with `tokens`, x is the table that they index."""
        cells = [(cell, cell.tensors()) for cell in cast("Iterable[Cell]", self.cells)]
        weight = next(iter(cells[0][1].values()), x)
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise CellError(f"x is {x.dtype}, the layer {weight.dtype}, expected equal types")
        mask = backwards = None
        if lengths is not None:
            time = torch.arange(x.shape[0], device=x.device)
            mask = (time[:, None] < lengths).unsqueeze(-1)  # (T, B, 1)
            # Each sequence reversed within its own length; what lies behind stays where it is.
            backwards = torch.where(
                mask[..., 0], lengths - 1 - time[:, None], time[:, None]
            )  # (T, B)
        lasts: list[tuple[Tensor, ...]] = []
        for index, (cell, params) in enumerate(cells):
            layer, direction = divmod(index, self.directions)
            if direction == 0:
                if layer and self.dropout:
                    x = nn.functional.dropout(x, self.dropout, self.training)
                entering, ys = x, []
            order = None if layer or tokens is None else tokens
            z = entering
            if direction and order is not None:
                order = order.flip(0)
            elif direction:
                z = _reversed(z, backwards)
            firsts = state if len(cells) == 1 else [s[index : index + 1] for s in state]
            y, last = self.run(params, cell.enter(z), firsts, mask, order)
            ys.append(_reversed(y, backwards) if direction else y)
            lasts.append(last)
            x = ys[0] if len(ys) == 1 else torch.cat(ys, dim=-1)
        if len(lasts) == 1:
            return x, lasts[0]
        return x, tuple(torch.cat(parts) for parts in zip(*lasts, strict=True))


def _reversed(x: Tensor, backwards: Tensor | None) -> Tensor:
    """x in reverse time, (T, B, ·); `backwards` (T, B) gives the source step of every row where
    lengths differ."""
    if backwards is None:
        return x.flip(0)
    return x.gather(0, backwards.unsqueeze(-1).expand_as(x))


def compile(
    cell: CellGraph | str | Path,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    backend: str = "auto",
    *,
    bias: bool = True,
    proj_size: int = 0,
    widths: Mapping[str, int] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> CellLayer:
    """A cell, or whatever `cellgraph.load` takes, as a recurrent layer that stands in for
    torch.nn.LSTM.

    `dropout` acts between layers. `bias=False` leaves out the vectors that the cell only adds (see
    `variants.biases`), the biases of its gates. `proj_size` is the width of the output of a cell
    that projects it, such as lstm_projection_torch; `widths` gives the size of every width that
    the cell declares besides H. What stands behind `num_layers` is best given by name: torch has
    `bias` there, and it would be taken for `batch_first`.

    Parameters are `layer.cells[i].NAME`, i counting layers and, within a layer, directions. Raises
    `CellError`.
    """
    from cellgraph import load

    if not isinstance(cell, CellGraph):
        cell = load(cell)
    if (
        not isinstance(dropout, (int, float))
        or isinstance(dropout, bool)
        or not 0.0 <= dropout < 1.0
    ):
        raise CellError(f"dropout is {dropout!r}, expected a number from 0 up to, not including, 1")
    flags = {"batch_first": batch_first, "bidirectional": bidirectional, "bias": bias}
    for name, flag in flags.items():
        if flag not in (True, False):
            raise CellError(f"{name} is {flag!r}, expected True or False")
    if proj_size != 0:
        proj_size = whole("proj_size", proj_size)
        cell, width = with_projection(cell)
        if width in (widths or {}):
            raise CellError(f"width {width} and proj_size are one size, expected only one of them")
        widths = {**(widths or {}), width: proj_size}
    return CellLayer(
        cell if bias else without_biases(cell),
        whole("input_size", input_size),
        whole("hidden_size", hidden_size),
        whole("num_layers", num_layers),
        batch_first,
        dropout,
        bidirectional,
        check_backend(backend),
        widths,
        device,
        dtype,
        bias,
        proj_size,
    )
