"""One whole step of training, as a search takes it, beside the plainest that torch offers: an LSTM
of 64 units on every task, on the same batch.

Letters: T time steps, B batch, V vocabulary, F frame width, H units, N scored steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import cellgraph as cg
from evaluators import data, tasks
from evaluators.model import Model
from evaluators.settings import Settings
from evaluators.step import Step
from evaluators.task import Batch, Task
from search.bench.timing import Effort, interleaved

HIDDEN = 64
EFFORT = Effort(seconds=2.0, least=5, most=60)
#: Usual values; none of them matters for time. `params` stands for H, which is given.
SETTINGS = Settings(scale=1.0, lr=0.001, clip=5.0, layers=1, params=1, optimizer="adam")


@dataclass(frozen=True)
class Row:
    """Milliseconds of one step of each kind, and ours over the plain one's; inputs is the shape of
    what they are fed."""

    task: str
    inputs: tuple[int, ...]
    rounds: int
    native: float
    plain: float
    ratio: float

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "inputs": list(self.inputs)}


def names() -> list[str]:
    """The tasks whose data are here."""
    known, found = data.names(), []
    for name in tasks.names():
        data_set = tasks.task_class(name).data_set
        if data_set is None or known[data_set]["available"]:
            found.append(name)
    return found


def measure(seed: int, say: Callable[[str, int, int], None]) -> Iterator[Row]:
    """Every task that `names` lists, with its default options."""
    here = names()
    for done, name in enumerate(here):
        say(f"training steps, {name}", done, len(here))
        yield _row(tasks.create(name), seed)


def _row(task: Task, seed: int) -> Row:
    # Not the first batch: where a text goes on from one to the next, all others start from a state.
    (batch,) = itertools.islice(task.train_batches(seed), 1, 2)
    native, plain = NativeStep(task, seed), PlainStep(task, seed)
    steps: dict[str, Callable[[], object]] = {
        "native": lambda: native(batch),
        "plain": lambda: plain(batch),
    }
    for step in steps.values():  # optimisers make room at the first
        step()
    times = interleaved(steps, EFFORT)
    return Row(
        task=task.name,
        inputs=tuple(batch.inputs.shape),
        rounds=len(times["plain"].runs),
        native=1000 * times["native"].median,
        plain=1000 * times["plain"].median,
        ratio=times["native"].over(times["plain"]),
    )


class NativeStep:
    """What evaluators/training.py does between two batches."""

    def __init__(self, task: Task, seed: int) -> None:
        model = Model(cg.load("lstm"), task, SETTINGS, HIDDEN, backend="native")
        model.reset_parameters(SETTINGS.scale, torch.Generator().manual_seed(seed))
        self.step = Step(model, task, SETTINGS)

    def __call__(self, batch: Batch) -> None:
        self.step.forward(batch)
        self.step.backward()
        self.step.update(SETTINGS.lr)


class PlainStep:
    """torch.nn.LSTM on one-hot symbols or frames, a linear head, and torch's own Adam."""

    def __init__(self, task: Task, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTM(task.input_width, HIDDEN)
            self.head = nn.Linear(HIDDEN, task.output_width)
        self.parameters = [*self.lstm.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, SETTINGS.lr)
        self.task = task
        self.state: Any = None

    def __call__(self, batch: Batch) -> None:
        x = batch.inputs
        if self.task.input_kind == "tokens":
            x = functional.one_hot(x, self.task.input_width).float()  # (T, B, V)
        state = None if batch.first or self.state is None else [s.detach() for s in self.state]
        y, self.state = self.lstm(x, state)  # (T, B, H)
        logits, targets = self.head(y), batch.targets  # (T, B, V or F)
        if batch.mask is None:
            logits, targets = logits.flatten(0, 1), targets.flatten(0, 1)
        else:
            scored = batch.mask > 0
            logits, targets = logits[scored], targets[scored]  # (N, V or F), (N,) or (N, F)
        if self.task.loss == "bernoulli":
            loss = functional.binary_cross_entropy_with_logits(logits, targets)
        else:
            loss = functional.cross_entropy(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, SETTINGS.clip)
        self.optimizer.step()
