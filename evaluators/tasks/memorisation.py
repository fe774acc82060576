"""Memorisation: can the cell carry a few symbols at all?

Measures: read 5 symbols (26 possible), then a marker, then reproduce them in order with teacher
forcing (the true previous symbol is the input). Source: Jozefowicz, Zaremba & Sutskever 2015, where
it is the first filter of the search: a candidate below 95 % is rejected. The paper prints no table
for it; it reports that an LSTM with 25K parameters passes in under 4 minutes. Metric: accuracy over
the reproduced symbols, maximise; chance is 1/26.

A row of length L has T = 2 L steps:

    step     0 … L-1        L         L+1 … 2L-1
    input    s1 … sL        marker    s1  … s(L-1)
    target   s2 … marker    s1        s2  … sL
    scored   no             yes       yes

Where the paper is silent: it does not say how the cell is told to begin, nor whether the reading
half counts. Here a marker of its own (symbol number 26) tells it, and only the reproduction counts.

Reached on validation, 25,000 parameters, 1,500 batches (Adam, scale 1.4, clip 5, one layer, the
better of two learning rates, one seed): LSTM 0.993, GRU 0.997. A tanh network gets to 1.000 at its
best rate and scale, and nowhere at others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from evaluators.task import Batch, Split, Task, generator, held_out, whole


class Memorisation(Task):
    """See the module. Every batch is fresh and starts from the zero state."""

    name = "memorisation"
    family = "memory"
    loss = "categorical"
    metric = "accuracy"
    maximise = True
    input_kind = "tokens"

    def __init__(
        self,
        *,
        symbols: int = 26,
        length: int = 5,
        batch_size: int = 64,
        valid_size: int = 1024,
        test_size: int = 4096,
        eval_batch_size: int = 512,
    ) -> None:
        """symbols: how many there are; length: how many to carry; valid_size, test_size: rows."""
        self.symbols = whole(self.name, "symbols", symbols, 2)
        self.length = whole(self.name, "length", length)
        self.batch_size = whole(self.name, "batch_size", batch_size)
        self._sizes = {
            "valid": whole(self.name, "valid_size", valid_size),
            "test": whole(self.name, "test_size", test_size),
        }
        self._eval_batch = whole(self.name, "eval_batch_size", eval_batch_size)
        self.unroll = 2 * self.length
        self._mask = torch.zeros(self.unroll, 1)
        self._mask[self.length :] = 1.0
        self._evaluation: dict[str, tuple[Batch, ...]] = {}
        self.input_width = self.output_width = self.symbols + 1
        super().__init__(
            symbols=self.symbols,
            length=self.length,
            batch_size=self.batch_size,
            valid_size=self._sizes["valid"],
            test_size=self._sizes["test"],
            eval_batch_size=self._eval_batch,
        )

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """Endless fresh batches of batch_size rows."""
        rng = generator(self.name, "train", seed)
        while True:
            yield self._batch(rng, self.batch_size)

    def eval_batches(self, split: Split) -> tuple[Batch, ...]:
        """valid_size (test_size) rows in batches of at most eval_batch_size."""
        split = held_out(self.name, split)
        if split not in self._evaluation:
            rng = generator(self.name, split, 0)
            size, most = self._sizes[split], self._eval_batch
            rows = [min(most, size - start) for start in range(0, size, most)]
            self._evaluation[split] = tuple(self._batch(rng, count) for count in rows)
        return self._evaluation[split]

    def _batch(self, rng: np.random.Generator, rows: int) -> Batch:
        symbols = rng.integers(self.symbols, size=(self.length, rows))  # (L, B)
        text = np.empty((2 * self.length + 1, rows), np.int64)
        text[: self.length] = text[self.length + 1 :] = symbols
        text[self.length] = self.symbols  # the marker
        tokens = torch.from_numpy(text)
        return Batch(tokens[:-1], tokens[1:], self._mask.expand(-1, rows), True)
