"""The layer: what it refuses, in one line each, and what it takes for a cell."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import cellgraph as cg

WIDE = "cell a(x, h, r: P) -> r\n h' = tanh(U @ h + W @ x)\n r' = R @ h'"


def test_cells_come_as_names_paths_and_graphs(tmp_path: Path) -> None:
    path = tmp_path / "mine.cell"
    path.write_text(str(cg.load("gru")))
    for cell in ("gru", str(path), path, cg.load("gru")):
        assert cg.compile(cell, 2, 3).cell == cg.load("gru")


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("gru", {"input_size": 0}, "input_size is 0, expected a whole number of at least 1"),
    ("gru", {"hidden_size": -1}, "hidden_size is -1, expected a whole number of at least 1"),
    ("gru", {"hidden_size": 2.0}, "hidden_size is 2.0, expected a whole number of at least 1"),
    ("gru", {"hidden_size": True}, "hidden_size is True, expected a whole number of at least 1"),
    ("gru", {"num_layers": 0}, "num_layers is 0, expected a whole number of at least 1"),
    ("gru", {"num_layers": "2"}, "num_layers is '2', expected a whole number of at least 1"),
    ("gru", {"dropout": 1.0}, "dropout is 1.0, expected a number from 0 up to"),
    ("gru", {"dropout": math.nan}, "dropout is nan, expected a number from 0 up to"),
    ("gru", {"dropout": "x"}, "dropout is 'x', expected a number from 0 up to"),
    (
        "gru",
        {"backend": "fast"},
        "no backend named 'fast', expected one of auto, native, scan, eager",
    ),
    ("gru", {"widths": {"P": 2}}, "cell gru has no width P, expected H"),
    ("guru", {}, "no cell named 'guru' (did you mean gru?)"),
    ("wide", {}, "cell a declares the width P, expected widths={'P': …}"),
    ("wide", {"widths": {"P": 0}}, "P is 0, expected a whole number of at least 1"),
    ("wide", {"widths": {"P": 2, "Q": 2}}, "cell a has no width Q, expected H, P"),
]


@pytest.mark.parametrize(("cell", "arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(cell: str, arguments: dict[str, Any], message: str) -> None:
    graph = cg.parse(WIDE) if cell == "wide" else cell
    with pytest.raises(cg.CellError) as caught:
        cg.compile(graph, **{"input_size": 2, "hidden_size": 3, **arguments})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["forward", "training", "half", "_parameters", "T_destination", "reset", "input_projection"],
)
def test_parameters_with_names_of_attributes_are_refused(name: str) -> None:
    cell = cg.parse(f"cell a(x, h)\n h' = tanh(W @ x + U @ h + {name})")
    message = f"parameter {name} of cell a has the name of an attribute"
    with pytest.raises(cg.CellError, match=message):
        cg.compile(cell, 4, 4)


BAD_INPUTS: list[tuple[Any, Any, str]] = [
    (torch.zeros(4, 2, 9), None, "x has shape (4, 2, 9), expected (time, batch, 3)"),
    (torch.zeros(3), None, "x has shape (3,), expected (time, batch, 3)"),
    (torch.zeros(1, 4, 2, 3), None, "x has shape (1, 4, 2, 3), expected (time, batch, 3)"),
    (torch.zeros(0, 2, 3), None, "x has no time steps, expected at least one"),
    ([[1.0, 2.0, 3.0]], None, "x is a list, expected a tensor or a PackedSequence"),
    (torch.zeros(4, 2, 3), torch.zeros(1, 2, 5), "state is Tensor, expected 2 tensors: h, c"),
    (torch.zeros(4, 2, 3), (), "state is empty, expected 2 tensors: h, c"),
    (torch.zeros(4, 2, 3), 1, "state is int, expected 2 tensors: h, c"),
    (torch.zeros(4, 2, 3), (1, 2), "state is int, int, expected 2 tensors: h, c"),
    (
        torch.zeros(4, 2, 3),
        (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5)),
        "state c has shape (1, 3, 5), expected (1, 2, 5)",
    ),
    (
        torch.zeros(4, 3),
        (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)),
        "state h has shape (1, 2, 5), expected (1, 5)",
    ),
    (
        pack_sequence([torch.zeros(2, 4)]),
        None,
        "the packed x has shape (2, 1, 4), expected (time, batch, 3)",
    ),
]


@pytest.mark.parametrize(("x", "state", "message"), BAD_INPUTS)
def test_bad_inputs(x: Any, state: Any, message: str) -> None:
    with pytest.raises(cg.CellError) as caught:
        cg.compile("lstm", 3, 5)(x, state)
    assert str(caught.value) == message
