"""Tasks so small that every number of them is known; for the tests of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch

from evaluators.task import Batch, Split, Task, Unit


class Stream(Task):
    """One fixed random stream of 5 symbols, 4 rows wide and 20 steps long, read in pieces."""

    name = "stream"
    family = "language"
    unit: ClassVar[Unit | None] = "bits_per_character"
    loss = "categorical"
    metric = "accuracy"
    maximise = True
    input_kind = "tokens"
    input_width = output_width = 5
    batch_size = 4

    def __init__(self, unroll: int = 5, *, forget: bool = False) -> None:
        super().__init__(unroll=unroll, forget=forget)
        self.unroll, self.forget = unroll, forget
        self.symbols = torch.randint(5, (21, 4), generator=torch.Generator().manual_seed(0))

    def eval_batches(self, split: Split) -> Iterable[Batch]:
        symbols = self.symbols if split == "valid" else self.symbols.flip(0)
        for start in range(0, 20, self.unroll):
            inputs, targets = (
                symbols[start : start + self.unroll],
                symbols[start + 1 : start + self.unroll + 1],
            )
            yield Batch(inputs, targets, None, first=self.forget or start == 0)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        while True:
            yield from self.eval_batches("valid")


class Frames(Stream):
    """The same stream as frames of 7 notes, of which the two at the end always sound."""

    name = "frames"
    family = "music"
    unit = "nll"
    loss = "bernoulli"
    metric = "nll"
    maximise = False
    input_kind = "frames"
    input_width = output_width = 7

    def eval_batches(self, split: Split) -> Iterable[Batch]:
        notes = torch.nn.functional.one_hot(self.symbols, 7).float()
        notes[..., 5:] = 1.0
        for start in range(0, 20, self.unroll):
            end = start + self.unroll
            yield Batch(notes[start:end], notes[start + 1 : end + 1], None, first=start == 0)


class Echo(Task):
    """Copy the symbol of the step before; only the second half of a sequence is scored."""

    name = "echo"
    family = "memory"
    loss = "categorical"
    metric = "accuracy"
    maximise = True
    input_kind = "tokens"
    input_width = output_width = 6
    batch_size, unroll = 16, 8
    unscored: ClassVar[int] = 0  # what stands where nothing is scored

    def _batch(self, seed: int) -> Batch:
        symbols = torch.randint(1, 6, (8, 16), generator=torch.Generator().manual_seed(seed))
        mask = torch.zeros(8, 16)
        mask[4:] = 1.0
        targets = torch.where(mask > 0, symbols.roll(1, 0), self.unscored)
        return Batch(symbols, targets, mask, first=True)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        rng = torch.Generator().manual_seed(seed)
        while True:
            yield self._batch(int(torch.randint(2**31, (), generator=rng)))

    def eval_batches(self, split: Split) -> Iterable[Batch]:
        return [self._batch(10**9 + i + 50 * (split == "test")) for i in range(3)]
