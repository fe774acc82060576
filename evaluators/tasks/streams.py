"""Endless and finite texts as batches of parallel columns.

Lives here: what arithmetic, XML and the language tasks share, that is cutting B columns of tokens
into windows of T steps so that window k + 1 continues window k. Must not live here: what the text
is. At every step the target is the token that follows the input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators import data
from evaluators.errors import DataError
from evaluators.task import Batch, Split, Task, generator, held_out, limits, whole

Tokens = NDArray[np.int64]
# A piece of text and, for each of its tokens, whether predicting it counts.
Piece = tuple[Tokens, NDArray[np.bool_]]

HORIZON = 64  # windows cut from one refill of the columns, so that numpy works on long pieces


class Column:
    """An endless text handed out in pieces of any length."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._tokens: Tokens = np.empty(0, np.int64)
        self._scored: NDArray[np.bool_] = np.empty(0, np.bool_)

    def take(self, count: int) -> Piece:
        """The next `count` tokens."""
        tokens, scored, length = [self._tokens], [self._scored], len(self._tokens)
        while length < count:
            more_tokens, more_scored = next(self._pieces)
            tokens.append(more_tokens)
            scored.append(more_scored)
            length += len(more_tokens)
        all_tokens, all_scored = np.concatenate(tokens), np.concatenate(scored)
        self._tokens, self._scored = all_tokens[count:], all_scored[count:]
        return all_tokens[:count], all_scored[:count]


def take_all(columns: Sequence[Column], count: int) -> tuple[Tokens, NDArray[np.bool_]]:
    """The next `count` tokens of every column, time first: (count, B) tokens, (count, B) scored."""
    pieces = [column.take(count) for column in columns]
    tokens = np.stack([piece[0] for piece in pieces], axis=1)
    return tokens, np.stack([piece[1] for piece in pieces], axis=1)


def cut(
    tokens: Tokens, scored: NDArray[np.bool_] | None, unroll: int, first: bool
) -> Iterator[Batch]:
    """Windows of at most `unroll` steps of (N + 1, B) tokens; scored[t] belongs to tokens[t]."""
    text = torch.from_numpy(np.ascontiguousarray(tokens))
    weights = None if scored is None else torch.from_numpy(scored.astype(np.float32))
    last = len(tokens) - 1
    for start in range(0, last, unroll):
        stop = min(start + unroll, last)
        mask = None if weights is None else weights[start + 1 : stop + 1]  # (T, B)
        yield Batch(text[start:stop], text[start + 1 : stop + 1], mask, first and start == 0)


class GeneratedTask(Task):
    """A task whose text is made up as it goes, one independent stream for each row of the batch.

    Stream i is a pure function of (task, split, seed, i): neither the batch size nor the unroll
    changes what it says.
    """

    loss = "categorical"
    metric = "accuracy"
    maximise = True
    input_kind = "tokens"
    masked: bool  # False: every step is scored, and batches carry no mask

    def __init__(
        self,
        *,
        batch_size: object,
        unroll: object,
        valid_size: object,
        test_size: object,
        eval_batch_size: object,
        **own: int | bool,
    ) -> None:
        """own: the options of the subclass, already checked."""
        name = self.name
        self.batch_size = whole(name, "batch_size", batch_size)
        self.unroll = whole(name, "unroll", unroll)
        self._sizes = {
            "valid": whole(name, "valid_size", valid_size),
            "test": whole(name, "test_size", test_size),
        }
        self._eval_batch = whole(name, "eval_batch_size", eval_batch_size)
        self._evaluation: dict[str, tuple[Batch, ...]] = {}
        super().__init__(
            **own,
            batch_size=self.batch_size,
            unroll=self.unroll,
            valid_size=self._sizes["valid"],
            test_size=self._sizes["test"],
            eval_batch_size=self._eval_batch,
        )

    @abstractmethod
    def pieces(self, rng: np.random.Generator) -> Iterator[Piece]:
        """The endless text of one stream, in pieces of a few thousand tokens."""

    def _columns(self, split: str, seed: int, count: int) -> list[Column]:
        rngs = (generator(self.name, split, seed, stream) for stream in range(count))
        return [Column(self.pieces(rng)) for rng in rngs]

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """Endless windows of `unroll` steps; `first` holds for the first batch alone."""
        columns = self._columns("train", seed, self.batch_size)
        tokens, scored = take_all(columns, 1)
        first = True
        while True:
            more_tokens, more_scored = take_all(columns, HORIZON * self.unroll)
            tokens = np.concatenate([tokens[-1:], more_tokens])  # the last target is the next input
            scored = np.concatenate([scored[-1:], more_scored])
            yield from cut(tokens, scored if self.masked else None, self.unroll, first)
            first = False

    def eval_batches(self, split: Split) -> tuple[Batch, ...]:
        """At least valid_size (test_size) characters in columns of equal length."""
        split = held_out(self.name, split)
        if split not in self._evaluation:
            size = self._sizes[split]
            width = min(self._eval_batch, size)
            tokens, scored = take_all(self._columns(split, 0, width), -(-size // width) + 1)
            batches = cut(tokens, scored if self.masked else None, self.unroll, True)
            if self.masked and not scored[1:].any():
                raise DataError(f"{self.name}: {split}_size={size} is too short to score anything")
            self._evaluation[split] = tuple(batches)
        return self._evaluation[split]


class CorpusTask(Task):
    """Next-token prediction on a text that exists: train, valid and test are separate texts."""

    family = "language"
    loss = "categorical"
    metric = "accuracy"
    maximise = True
    input_kind = "tokens"
    data_set: ClassVar[str]

    def __init__(
        self,
        *,
        batch_size: int = 20,
        unroll: int = 35,
        train_limit: int | None = None,
        valid_limit: int | None = None,
        test_limit: int | None = None,
        eval_batch_size: int = 100,
    ) -> None:
        """The limits are tokens kept from the beginning of a split, None for all of them."""
        name = self.name
        self.batch_size = whole(name, "batch_size", batch_size)
        self.unroll = whole(name, "unroll", unroll)
        self._eval_batch = whole(name, "eval_batch_size", eval_batch_size)
        kept = limits(name, train_limit, valid_limit, test_limit)
        super().__init__(
            batch_size=self.batch_size,
            unroll=self.unroll,
            **{f"{split}_limit": most for split, most in kept.items()},
            eval_batch_size=self._eval_batch,
        )
        arrays = data.load(self.data_set)
        self.vocabulary = tuple(str(symbol) for symbol in arrays["vocab"])
        self.input_width = self.output_width = len(self.vocabulary)
        # A limit keeps the beginning: a quick search and a long one then agree on what they share.
        self._text = {split: arrays[split][:most] for split, most in kept.items()}
        self.epoch_steps = -(-len(self._text["train"]) // (self.batch_size * self.unroll))
        self._evaluation: dict[str, tuple[Batch, ...]] = {}

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """Row i reads the text cyclically from offset(seed) + i N / B, for ever.

        So N / B steps of all rows are one pass over every token, nothing is dropped at the end, the
        state is always that of the words just read (but at the one place where the text closes to
        a ring), and short runs with different seeds see different parts.
        """
        # A copy, since torch wants writable memory and arrays from another process are read-only.
        text = torch.from_numpy(self._text["train"].astype(np.int64))  # (N,)
        size, width = len(text), self.batch_size
        offset = int(generator(self.name, "train", seed).integers(size))
        rows = offset + torch.arange(width) * size // width  # (B,)
        steps = torch.arange(self.unroll + 1).unsqueeze(1)  # (T + 1, 1)
        position, first = 0, True
        while True:
            window = text[(rows + position + steps) % size]  # (T + 1, B)
            yield Batch(window[:-1], window[1:], None, first)
            position, first = (position + self.unroll) % size, False

    def eval_batches(self, split: Split) -> tuple[Batch, ...]:
        """One pass: every token but the first is predicted exactly once.

        The text stands in columns of equal length; what the last ones lack is padding with mask 0.
        """
        split = held_out(self.name, split)
        if split not in self._evaluation:
            text = self._text[split].astype(np.int64)
            steps = -(-(len(text) - 1) // self._eval_batch)
            width = -(-(len(text) - 1) // steps)
            inside = np.arange(steps * width + 1) < len(text)
            padded = np.where(inside, np.resize(text, steps * width + 1), 0)
            # Column i holds tokens i*steps .. (i+1)*steps: its last is only a target, the first
            # input of column i + 1.
            index = np.arange(width) * steps + np.arange(steps + 1)[:, None]  # (steps + 1, width)
            scored = None if inside.all() else inside[index]
            self._evaluation[split] = tuple(cut(padded[index], scored, self.unroll, True))
        return self._evaluation[split]
