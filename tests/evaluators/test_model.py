"""The model around the cell: its size within the parameter budget, and its initial values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import cellgraph as cg
from evaluators import Settings, evaluate
from evaluators.model import build, count_parameters, hidden_size_for
from evaluators.task import Task
from tests.evaluators.small_tasks import Echo, Frames

ADAM = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=3000)


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh_rnn", "mut1"])  # mut1 reads raw x
@pytest.mark.parametrize("task", [Echo(), Frames()])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("params", [500, 1234, 25_000])
def test_the_parameter_budget_is_used_up(cell: str, task: Task, layers: int, params: int) -> None:
    graph, settings = cg.load(cell), replace(ADAM, layers=layers, params=params)
    hidden = hidden_size_for(graph, task, settings)
    assert (
        count_parameters(graph, task, hidden, layers)
        <= params
        < count_parameters(graph, task, hidden + 1, layers)
    )
    model = build(graph, task, settings, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(
        graph, task, hidden, layers
    )


def test_the_count_dips_where_the_projection_goes() -> None:
    class Wide(Frames):
        input_width = output_width = 40

    mut1 = cg.load("mut1")
    counts = [count_parameters(mut1, Wide(), hidden, 1) for hidden in (38, 39, 40, 41)]
    assert counts[0] > counts[2]  # 38 units need a projection of the 40 notes, 40 do not
    for params in (counts[2], counts[0], counts[1] - 1):
        assert hidden_size_for(mut1, Wide(), replace(ADAM, params=params)) == 40
    assert hidden_size_for(mut1, Wide(), replace(ADAM, params=counts[3])) == 41


def test_a_budget_too_small_for_one_unit_is_invalid() -> None:
    (record,) = evaluate("lstm", Echo(), replace(ADAM, params=20), 1, seed=0)
    assert record["status"] == "invalid"
    assert "parameters" in record["error"]
    assert "20" in record["error"]
    assert record["cost"]["steps"] == 0


def test_initial_values() -> None:
    cell = cg.load("gru")
    model = build(cell, Echo(), replace(ADAM, scale=0.7), seed=3)
    bound = 0.7 / math.sqrt(model.hidden_size)
    for name, value in model.named_parameters():
        assert float(value.detach().abs().max()) <= bound, name
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float(flat.abs().max()) > 0.99 * bound
    assert abs(float(flat.mean())) < 0.05 * bound
    again, other = (
        build(cell, Echo(), replace(ADAM, scale=0.7), 3),
        build(cell, Echo(), replace(ADAM, scale=0.7), 4),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    assert not any(
        torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_init_rules_of_a_cell_come_last() -> None:
    model = build(cg.load("lstm_b"), Echo(), replace(ADAM, scale=0.3), seed=0)  # forget bias 1
    ones = [name for name, value in model.named_parameters() if value.detach().eq(1).all()]
    assert len(ones) == 1
