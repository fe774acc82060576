"""One training step against the plain way to write it, and what of a batch it may look at."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cellgraph as cg
from cellgraph.kernels.bound import Bound
from evaluators import Settings
from evaluators.metrics import measure, summed_loss
from evaluators.model import Model, build
from evaluators.settings import OptimizerName
from evaluators.step import Step
from evaluators.task import Batch, Split, Task
from tests.evaluators.small_tasks import Echo, Frames, Stream

SETTINGS = Settings(optimizer="adam", scale=2.0, lr=0.02, clip=1.5, layers=1, params=3000)


class WideEcho(Echo):
    """More symbols than there are tokens in a batch."""

    input_width = output_width = 200


class WideStream(Stream):
    input_width = output_width = 50


TASKS = [Echo(), WideEcho(), Stream(), WideStream(), Frames()]


class Plain:
    """Embedding or frames, eager layers and the head on all steps; a loss that counts masked ones
    as zero; autograd; torch's clipping and optimisers."""

    def __init__(self, model: Model, task: Task, settings: Settings) -> None:
        self.model, self.task, self.settings = copy.deepcopy(model), task, settings
        self.layers = cg.compile(
            model.layers.cell,
            model.layers.input_size,
            model.hidden_size,
            settings.layers,
            dropout=settings.dropout if settings.layers > 1 else 0.0,
            backend="eager",
        )
        self.layers.load_state_dict(model.layers.state_dict())
        self.model.layers = self.layers
        self.parameters = list(self.model.parameters())
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(self.parameters, settings.lr)
        self.state: Any = None

    def logits(self, batch: Batch) -> Tensor:
        """(T, B, V or F)"""
        x, model = batch.inputs, self.model
        if batch.first:
            self.state = None
        if model.embedding is not None:
            x = model.embedding(x)
        y, state = self.layers(x, self.state)
        self.state = tuple(s.detach() for s in state) if type(state) is tuple else state.detach()
        return model.head(functional.dropout(y, self.settings.dropout, model.training))

    def __call__(self, batch: Batch) -> tuple[float, float]:
        logits = self.logits(batch)
        if self.task.loss == "bernoulli":
            losses = functional.binary_cross_entropy_with_logits(
                logits, batch.targets, reduction="none"
            ).sum(-1)  # (T, B)
        else:
            losses = functional.cross_entropy(
                logits.flatten(0, 1), batch.targets.flatten(), reduction="none"
            ).view(batch.targets.shape)  # (T, B)
        loss = (losses if batch.mask is None else losses * batch.mask).sum()
        self.optimizer.zero_grad()
        (loss / batch.inputs.shape[1]).backward()
        # torch's clipping divides by the norm and 1e-6; what is asked of it here is the norm alone.
        norm = float(nn.utils.clip_grad_norm_(self.parameters, math.inf))
        for p in self.parameters:
            if p.grad is not None:
                p.grad.mul_(min(1.0, self.settings.clip / norm))
        self.optimizer.step()
        return loss.item(), norm


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Of all numbers made in a test. In double precision agreement means much more."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def _batches(task: Task, dtype: torch.dtype, count: int) -> list[Batch]:
    def real(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    batches = islice(task.train_batches(0), count)
    return [replace(b, inputs=real(b.inputs), targets=real(b.targets)) for b in batches]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])  # two states, and one
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_step_is_the_plain_computation(
    task: Task, layers: int, cell: str, optimizer: OptimizerName, dtype: torch.dtype
) -> None:
    settings = replace(SETTINGS, layers=layers, optimizer=optimizer, params=9000)
    model = build(cg.load(cell), task, settings, seed=0, backend="native")
    step, plain = Step(model, task, settings), Plain(model, task, settings)
    batches = _batches(task, dtype, 12)
    if isinstance(task, Stream):
        assert [b.first for b in batches[:5]] == [True, False, False, False, True]
        assert batches[0].mask is None
    close = 1e-10 if dtype == torch.float64 else 2e-5
    for batch in batches:
        nats, scored = step.forward(batch)
        norm = step.backward()
        step.update(settings.lr)
        expected, expected_norm = plain(batch)
        assert scored == (batch.targets.shape[0] * 4 if batch.mask is None else 64)
        assert nats == pytest.approx(expected, rel=close)
        assert norm == pytest.approx(expected_norm, rel=close)
    if optimizer == "adam":  # which makes a large step out of a gradient that is mere rounding
        close = 1e-8 if dtype == torch.float64 else 1e-3
    for (name, p), q in zip(model.named_parameters(), plain.parameters, strict=True):
        torch.testing.assert_close(p, q, rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_falls_on_the_same_elements() -> None:
    settings = replace(SETTINGS, layers=2, dropout=0.3)
    for task in (Echo(), Stream(), Frames()):
        model = build(cg.load("gru"), task, settings, seed=0, backend="native").train()
        step, plain = Step(model, task, settings), Plain(model, task, settings)
        for number, batch in enumerate(islice(task.train_batches(0), 4)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)
                nats, _ = step.forward(batch)
                step.backward()
                step.update(settings.lr)
                torch.manual_seed(number)
                assert nats == pytest.approx(plain(batch)[0], rel=1e-4)


def test_gradients_end_where_the_state_is_carried_over() -> None:
    """What a batch leaves behind is a number for the next one, and holds nothing of its graph."""
    task = Stream()
    settings = replace(SETTINGS, layers=2)
    step = Step(build(cg.load("lstm"), task, settings, 0, backend="native"), task, settings)
    assert step._direct is None
    first, second = islice(task.train_batches(0), 2)
    step.forward(first)
    step.backward()
    before = [p.grad for p in step.model.parameters()]
    step.forward(second)  # raises if its backward pass went through the first once more
    step.backward()
    assert all(p.grad is not b for p, b in zip(step.model.parameters(), before, strict=True))


@pytest.fixture(params=["tokens", "frames"])
def masked(request: pytest.FixtureRequest) -> tuple[Task, Batch, Tensor]:
    """A task, a batch, and which of its steps are not scored, (T, B)."""
    task, batch = Echo(), Echo()._batch(0)
    if request.param == "frames":
        task, batch = Frames(), next(Frames().train_batches(0))
        batch = replace(batch, mask=torch.tensor([[0.0, 1.0, 0.0, 1.0]] * 5))
    assert batch.mask is not None
    return task, batch, batch.mask == 0


# without autograd

PREPARED = """cell prepared(x, h)
    a  = sigmoid(W @ tanh(x) + V @ x + b)
    h' = a * h + (1 - a) * tanh(U @ (h * sigmoid(u)) + x + W2 @ (x * x))
"""


@pytest.mark.parametrize(
    "cell",
    ["mut1", "mut3", "tanh_rnn", "antisymmetric_rnn_gated", PREPARED],
    ids=["mut1", "mut3", "tanh_rnn", "skew", "prepared"],
)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_what_a_cell_has_prepared_gets_its_gradient(
    task: Task, cell: str, dtype: torch.dtype
) -> None:
    """Products of tanh(x), functions of a parameter, a skew matrix, a projection of frames, in
    every piece of a stream; and pieces of other lengths in between."""
    graph = cg.parse(cell) if cell == PREPARED else cg.load(cell)
    model = build(graph, task, SETTINGS, seed=0, backend="native")
    step, plain = Step(model, task, SETTINGS), Plain(model, task, SETTINGS)
    assert step._direct is not None
    close = 1e-10 if dtype == torch.float64 else 2e-5
    for number, whole in enumerate(_batches(task, dtype, 12)):
        end = -1 if number % 3 == 1 else None
        parts = {"inputs": whole.inputs[:end], "targets": whole.targets[:end]}
        mask = None if whole.mask is None else whole.mask[:end]
        batch = replace(whole, **parts, mask=mask)
        nats, _ = step.forward(batch)
        norm = step.backward()
        expected, expected_norm = plain(batch)
        assert (nats, norm) == pytest.approx((expected, expected_norm), rel=close)
        for (name, p), q in zip(model.named_parameters(), plain.parameters, strict=True):
            gradient = torch.zeros_like(q) if q.grad is None else q.grad
            scale = min(1.0, SETTINGS.clip / norm)  # the plain one has clipped already
            assert p.grad is not None
            torch.testing.assert_close(
                p.grad * scale, gradient, rtol=close, atol=close, msg=lambda m, n=name: f"{n}: {m}"
            )
        step.update(SETTINGS.lr)
        for p, q in zip(model.parameters(), plain.parameters, strict=True):
            with torch.no_grad():
                q.copy_(p)


def test_which_models_do_without_autograd() -> None:
    def direct(task: Task, backend: str = "native", **changed: Any) -> bool:
        settings = replace(SETTINGS, **changed)
        step = Step(build(cg.load("gru"), task, settings, 0, backend), task, settings)
        return step._direct is not None and step._direct.suits(next(task.train_batches(0)))

    assert all(direct(task) for task in (Echo(), Stream(), Frames()))
    assert direct(Echo(), "auto")
    assert not any(direct(task) for task in (WideEcho(), WideStream()))  # tokens are looked up
    assert not direct(Echo(), "eager")
    assert not direct(Echo(), layers=2)
    assert not direct(Echo(), dropout=0.3)


@pytest.mark.parametrize("token", [-1, 6])
def test_a_token_that_is_none(token: int) -> None:
    task = Echo()
    step = Step(build(cg.load("gru"), task, SETTINGS, 0, "native"), task, SETTINGS)
    batch = task._batch(0)
    bad = batch.inputs.clone()
    bad[3, 2] = token
    with pytest.raises(cg.CellError, match=f"token {token}, expected a number from 0 to 5"):
        step.forward(replace(batch, inputs=bad))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_no_gradient_from_outside_the_mask_without_autograd(
    monkeypatch: pytest.MonkeyPatch, bad: float, masked: tuple[Task, Batch, Tensor]
) -> None:
    task, batch, outside = masked
    step = Step(build(cg.load("gru"), task, SETTINGS, 0, "native"), task, SETTINGS)
    clean = step.forward(batch), step.backward()
    run = Bound.forward

    def spoiled(bound: Bound) -> None:
        run(bound)
        bound.output[outside] = bad

    monkeypatch.setattr(Bound, "forward", spoiled)
    assert (step.forward(batch), step.backward()) == clean
    assert step._direct is not None
    assert step._direct._shape is not None
    gradient = step._direct._shape.bound.gradient
    assert not gradient[outside].any()  # true for NaN too
    assert gradient[~outside].abs().amax(-1).min() > 0


def test_the_order_of_calls() -> None:
    task = Echo()
    step = Step(build(cg.load("gru"), task, SETTINGS, 0), task, SETTINGS)
    with pytest.raises(RuntimeError, match="expected a call of forward"):
        step.backward()
    with pytest.raises(RuntimeError, match="expected a call of clip"):
        step.update(0.1)
    step.forward(task._batch(0))
    step.backward()
    with pytest.raises(RuntimeError, match="expected a call of forward"):
        step.backward()
    step.update(0.1)
    with pytest.raises(RuntimeError, match="expected a call of clip"):
        step.update(0.1)


# what is scored


def _fed(monkeypatch: pytest.MonkeyPatch, model: Model, y: Tensor) -> Tensor:
    """Have the head of `model` read y, (T, B, H); returns y as a leaf."""
    y.requires_grad_()
    monkeypatch.setattr(model, "outputs", lambda inputs, state: (y, None))
    return y


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_no_gradient_from_outside_the_mask(
    monkeypatch: pytest.MonkeyPatch, bad: float, masked: tuple[Task, Batch, Tensor]
) -> None:
    task, batch, outside = masked
    step = Step(build(cg.load("gru"), task, SETTINGS, 0, "eager"), task, SETTINGS)
    y = torch.randn(*outside.shape, step.model.hidden_size)
    clean, clean_norm = None, None
    for value in (0.0, bad):
        y = y.detach().clone()
        y[outside] = value  # not even this
        y = _fed(monkeypatch, step.model, y)
        nats, scored = step.forward(batch)
        norm = step.backward()
        assert scored == int(batch.mask.sum())
        assert math.isfinite(nats)
        assert math.isfinite(norm)
        assert y.grad is not None
        assert not y.grad[outside].any()  # true for NaN too
        assert y.grad[~outside].abs().amax(-1).min() > 0
        clean, clean_norm = clean or nats, clean_norm or norm
        assert (nats, norm) == (clean, clean_norm)


def test_losses_are_nats_summed_over_steps_and_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.ones(3, 2, dtype=torch.int64)
    frames = torch.ones(3, 2, 7)
    half = torch.tensor([[1.0, 0.0]] * 3)
    for task, batch, count, nats in (
        (Stream(), Batch(targets, targets, None, first=True), 6, 6 * math.log(5)),
        (Stream(), Batch(targets, targets, half, first=True), 3, 3 * math.log(5)),
        (Frames(), Batch(frames, frames, None, first=True), 6, 6 * 7 * math.log(2)),
        (Frames(), Batch(frames, frames, half, first=True), 3, 3 * 7 * math.log(2)),
    ):
        step = Step(build(cg.load("gru"), task, SETTINGS, 0), task, SETTINGS)
        with torch.no_grad():  # then all outcomes are equally likely
            step.model.head.weight.zero_()
            step.model.head.bias.zero_()
        logits, chosen, _ = step.model.scored(batch)
        assert len(logits) == len(chosen) == count
        assert float(summed_loss(task, logits, chosen).detach()) == pytest.approx(nats)
        assert step.forward(batch) == (pytest.approx(nats), count)


def test_the_gradient_is_that_of_the_sum_over_the_batch_size() -> None:
    """So a batch twice as wide, of the same rows twice, has the same gradient."""
    task = Echo()
    batch = task._batch(0)
    assert batch.mask is not None
    twice = Batch(*(torch.cat([t, t], 1) for t in (batch.inputs, batch.targets, batch.mask)), True)
    norms = []
    for given in (batch, twice):
        step = Step(build(cg.load("gru"), task, SETTINGS, 0), task, SETTINGS)
        step.forward(given)
        norms.append(step.backward())
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_batch_without_anything_scored_teaches_nothing(cell: str, name: OptimizerName) -> None:
    task, settings = Echo(), replace(SETTINGS, optimizer=name)
    batch = task._batch(0)
    step = Step(build(cg.load(cell), task, settings, 0), task, settings)
    before = step.optimizer.copy()
    assert step.forward(replace(batch, mask=torch.zeros(8, 16))) == (0.0, 0)
    assert step.backward() == 0.0
    step.update(0.1)
    assert torch.equal(step.optimizer.copy(), before)


# measuring


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_measuring_is_the_plain_computation(
    task: Task, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the native backend, which keeps nothing then, without dropout, and leaving no trace."""
    settings = replace(SETTINGS, dropout=0.5, layers=2)
    model = build(cg.load(cell), task, settings, 0, backend="native").train()
    before = copy.deepcopy(model.state_dict())
    plain = Plain(model, task, settings)
    plain.model.eval()
    nats = count = correct = 0.0
    with torch.no_grad():
        for batch in task.eval_batches("valid"):
            scored = torch.ones(batch.inputs.shape[:2]) if batch.mask is None else batch.mask
            logits, targets = plain.logits(batch)[scored > 0], batch.targets[scored > 0]
            nats += float(summed_loss(task, logits, targets))
            count += float(scored.sum())
            if task.loss == "categorical":
                correct += float((logits.argmax(1) == targets).sum())
    run, recorded = model.layers.run, []
    monkeypatch.setattr(
        model.layers, "run", lambda *a: recorded.append(torch.is_grad_enabled()) or run(*a)
    )
    measured = measure(model, task, "valid")
    assert recorded
    assert not any(recorded)
    assert measured["loss"] == pytest.approx(nats / count, rel=1e-5)
    if task.loss == "categorical":
        assert measured["accuracy"] == correct / count
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_split_that_is_long_and_scored_here_and_there() -> None:
    class Sparse(Stream):
        """Only the third piece of four is scored."""

        def eval_batches(self, split: Split) -> Iterable[Batch]:
            for number, batch in enumerate(super().eval_batches(split)):
                yield replace(batch, mask=torch.full((5, 4), float(number == 2)))

    model = build(cg.load("gru"), Sparse(), SETTINGS, 0)
    plain = Plain(model, Sparse(), SETTINGS)
    with torch.no_grad():
        every = [(plain.logits(b), b.targets) for b in Stream().eval_batches("valid")]
    logits, targets = (part.flatten(0, 1) for part in every[2])
    expected = float(functional.cross_entropy(logits, targets))
    assert measure(model, Sparse(), "valid")["loss"] == pytest.approx(expected, rel=1e-5)
