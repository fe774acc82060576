"""The flat optimiser against torch's own optimisers and clipping."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from evaluators.optimizer import FlatOptimizer
from evaluators.settings import OptimizerName


def _model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.5), ("adam", 0.05)])
@pytest.mark.parametrize("largest", [0.05, 1e6])
def test_it_moves_as_torch_does(name: OptimizerName, lr: float, largest: float) -> None:
    ours, theirs = _model(), _model()
    flat = FlatOptimizer(list(ours.parameters()), name)
    kind = torch.optim.Adam if name == "adam" else torch.optim.SGD
    reference = kind(theirs.parameters(), lr)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        x = torch.randn(4, 5, generator=generator)  # (B, X)
        flat.zero_grad()
        ours(x).square().sum().backward()
        norm = flat.clip(largest)
        flat.step(lr / (step + 1))
        reference.param_groups[0]["lr"] = lr / (step + 1)
        reference.zero_grad()
        theirs(x).square().sum().backward()
        expected = float(nn.utils.clip_grad_norm_(theirs.parameters(), largest))
        reference.step()
        assert norm == pytest.approx(expected, rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_norm_that_is_no_number_is_reported() -> None:
    model = _model()
    flat = FlatOptimizer(list(model.parameters()), "sgd")
    flat.gradient[3] = math.nan
    assert math.isnan(flat.clip(1.0))


def test_copies_are_restored() -> None:
    model = _model()
    flat = FlatOptimizer(list(model.parameters()), "adam")
    before, kept = copy.deepcopy(model.state_dict()), flat.copy()
    model(torch.ones(2, 5)).sum().backward()
    flat.step(0.1)
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    flat.restore(kept)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
