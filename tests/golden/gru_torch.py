"""Gru: a recurrent layer with the shapes and states of torch.nn.LSTM.

Exported from the equations below; needs nothing but torch.
"""

# Gated recurrent unit, reset before the matrix.
# reference: Cho et al. 2014, arXiv 1406.1078v3, and Jozefowicz, Zaremba, Sutskever 2015, PMLR v37
# tags: classic gated jozefowicz
# aliases: gru_reset_before
# notes: z keeps the OLD state. torch.nn.GRU applies the reset after the matrix: that is
# gru_reset_after.
#
#     cell gru(x, h)
#         r  = sigmoid(W_r @ x + U_r @ h + b_r)
#         z  = sigmoid(W_z @ x + U_z @ h + b_z)
#         g  = tanh(W_g @ x + U_g @ (r * h) + b_g)
#         h' = z * h + (1 - z) * g

from __future__ import annotations

import torch
from torch import nn


class GruCell(nn.Module):
    """One layer in one direction. T: time steps, B: batch rows."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W_z = nn.Parameter(torch.empty(hidden_size, input_size))
        self.U_z = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.b_z = nn.Parameter(torch.empty(hidden_size))
        self.W_g = nn.Parameter(torch.empty(hidden_size, input_size))
        self.U_g = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.W_r = nn.Parameter(torch.empty(hidden_size, input_size))
        self.U_r = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.b_r = nn.Parameter(torch.empty(hidden_size))
        self.b_g = nn.Parameter(torch.empty(hidden_size))

    @torch.no_grad()
    def reset_parameters(self, bound: float) -> None:
        """All parameters from U[-bound, bound], then those that start otherwise."""
        for value in self.parameters():
            value.uniform_(-bound, bound)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """x (T, B, input_size), h (B, hidden_size); returns the outputs (T, B, hidden_size) and
        the last state.
        """
        # What needs no state, for all time steps at once.
        weight_x = torch.cat([self.W_r, self.W_z, self.W_g])
        W_r_x, W_z_x, W_g_x = nn.functional.linear(x, weight_x).chunk(3, dim=-1)
        r_x = W_r_x + self.b_r
        z_x = W_z_x + self.b_z
        g_x = W_g_x + self.b_g
        weight_h = torch.cat([self.U_r, self.U_z])
        outputs = []
        for r_x_t, z_x_t, g_x_t in zip(r_x, z_x, g_x, strict=True):
            U_r_h, U_z_h = nn.functional.linear(h, weight_h).chunk(2, dim=-1)
            r = torch.sigmoid(r_x_t + U_r_h)
            z = torch.sigmoid(z_x_t + U_z_h)
            g = torch.tanh(g_x_t + nn.functional.linear(r * h, self.U_g))
            h = z * h + (1 - z) * g
            outputs.append(h)
        return torch.stack(outputs), h


class Gru(nn.Module):
    """Layers of the cell, one over the other; the arguments are those of nn.LSTM."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.num_layers, self.batch_first = num_layers, batch_first
        self.dropout, self.directions = dropout, 2 if bidirectional else 1
        self.cells = nn.ModuleList()
        for layer in range(num_layers):
            entering = input_size if layer == 0 else self.directions * hidden_size
            for _ in range(self.directions):
                self.cells.append(GruCell(entering, hidden_size))
        self.reset_parameters()

    def reset_parameters(self, scale: float = 1.0) -> None:
        """Start afresh, with noise up to scale / sqrt(hidden_size)."""
        for cell in self.cells:
            cell.reset_parameters(scale / self.hidden_size**0.5)

    def forward(
        self, x: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a sequence.

        x: (T, B, input_size), or (B, T, input_size) with batch_first, or (T, input_size)
        without a batch; a PackedSequence is not taken. state: None for zeros, or h
        (num_layers * directions, B, hidden_size); no B where x has none. Returns the outputs,
        directions * hidden_size wide, and the last state.
        """
        batched = x.dim() == 3
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (T, B, {self.input_size})")
        if not batched:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        if x.shape[0] == 0:
            raise ValueError("x has no time steps, expected at least one")
        shape = (len(self.cells), x.shape[1], self.hidden_size)
        if state is None:
            state = x.new_zeros(shape)
        elif not batched:
            state = state.unsqueeze(1)
        if state.shape != shape:
            raise ValueError(f"the state has shape {tuple(state.shape)}, expected {shape}")

        lasts = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
            ys = []
            for direction in range(self.directions):
                index = layer * self.directions + direction
                y, last = self.cells[index](x.flip(0) if direction else x, state[index])
                ys.append(y.flip(0) if direction else y)
                lasts.append(last)
            x = torch.cat(ys, dim=-1)
        state = torch.stack(lasts)
        if not batched:
            return x.squeeze(1), state.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x, state
