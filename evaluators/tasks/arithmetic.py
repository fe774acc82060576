"""Arithmetic: add or subtract two numbers hidden among distracting letters.

Measures: reading `3e36d9-h1h39f94eeh43keg3c=` and writing `-13991064.` after it, digit by digit
with the true previous digits as input; it takes skipping letters, remembering numbers, carrying.
Source: Jozefowicz, Zaremba & Sutskever 2015, table 1 (column "Arith.": LSTM 0.89228, GRU 0.89565,
best of many settings at up to 1M parameters). Metric: accuracy of the next character of an answer,
maximise.

The text: 40 symbols, a-z 0-9 + - = and the full stop that ends an answer. Examples follow each
other without a separator, B streams side by side, 35 steps at a time, the state carried over.

Where the paper is silent, the choice here:
* scored positions: the characters after `=` up to and including `.`. The letters and operands are
  random, so no model predicts them, and the printed 0.89 can only be an accuracy on answers.
* operands: the number of digits is uniform in 1..digits and no number starts with a zero but zero
  itself; each operand is negative with probability 1/2 (zero never, so "-0" does not occur).
* letters: between one character of the question and the next (`=` is its last) none with
  probability 1/2, else 1, 2 or 3 with equal probability, each uniform in a-z; none in front of the
  answer, as in the paper's example, and none inside it.
* the space that the paper's example prints after `=` is typography: it is none of the 40 symbols.

Reached on validation, with digits=1, 25,000 parameters, 3,000 steps (Adam, scale 1.4, clip 5, one
layer, the better of two learning rates, one seed): LSTM 0.976, GRU 0.989, tanh network 0.918, LSTM
without forget gate 0.855. With digits=2 and 6,000 steps: 0.745, 0.796, 0.637, 0.508.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from evaluators.task import switch, whole
from evaluators.tasks.streams import GeneratedTask, Piece, Tokens

ALPHABET = string.ascii_lowercase + string.digits + "+-=."
LETTERS = 26
ZERO = ALPHABET.index("0")
PLUS, MINUS, EQUALS, STOP = (ALPHABET.index(symbol) for symbol in "+-=.")

EXAMPLES = 64  # in one piece: about 2,400 characters with 8 digits
DISTRACTORS = 3  # letters after a character, at most


class Arithmetic(GeneratedTask):
    """See the module."""

    name = "arithmetic"
    family = "arithmetic"
    masked = True

    def __init__(
        self,
        *,
        digits: int = 8,
        distractors: bool = True,
        batch_size: int = 20,
        unroll: int = 35,
        valid_size: int = 35_000,
        test_size: int = 105_000,
        eval_batch_size: int = 100,
    ) -> None:
        """digits: of an operand, at most; valid_size, test_size: characters of text."""
        # 17: twice the largest operand must fit 64 bits, and 10**18 - 1 doubled nearly fills them.
        self.digits = whole(self.name, "digits", digits, 1, 17)
        self.distractors = switch(self.name, "distractors", distractors)
        self.vocabulary = tuple(ALPHABET)
        self.input_width = self.output_width = len(ALPHABET)
        super().__init__(
            digits=self.digits,
            distractors=self.distractors,
            batch_size=batch_size,
            unroll=unroll,
            valid_size=valid_size,
            test_size=test_size,
            eval_batch_size=eval_batch_size,
        )

    def pieces(self, rng: np.random.Generator) -> Iterator[Piece]:
        """Pieces of EXAMPLES examples: the characters, and which of them belong to an answer."""
        while True:
            yield self._examples(rng, EXAMPLES)

    def _examples(self, rng: np.random.Generator, count: int) -> Piece:
        """All examples at once: a table with a column for every place a character could stand in.

        Row by row, the places that are filled, read in order, are the text.
        """
        left, right = self._operands(rng, count), self._operands(rng, count)
        minus = rng.random(count) < 0.5
        answer = np.where(minus, left - right, left + right)
        operator = self.digits + 1  # the sign of the left operand, and its digits, stand before it

        question = np.empty((count, 2 * self.digits + 3), np.int64)
        used = np.ones(question.shape, np.bool_)
        _write(left, question[:, :operator], used[:, :operator])
        question[:, operator] = np.where(minus, MINUS, PLUS)
        _write(right, question[:, operator + 1 :], used[:, operator + 1 :])
        if self.distractors:
            question, used = _distracted(rng, question, used)

        equals = question.shape[1]
        text = np.empty((count, equals + self.digits + 4), np.int64)
        filled = np.ones(text.shape, np.bool_)
        text[:, :equals], filled[:, :equals] = question, used
        text[:, equals] = EQUALS
        _write(answer, text[:, equals + 1 : -1], filled[:, equals + 1 : -1])
        text[:, -1] = STOP
        places = filled.ravel().nonzero()[0]
        return text.ravel()[places], places % text.shape[1] > equals

    def _operands(self, rng: np.random.Generator, count: int) -> Tokens:
        digits = rng.integers(1, self.digits + 1, size=count)
        low = np.where(digits == 1, 0, 10 ** (digits - 1))
        value = rng.integers(low, 10**digits)
        return np.where(rng.random(count) < 0.5, -value, value)


def _write(value: Tokens, symbols: Tokens, used: np.ndarray) -> None:
    """Numbers into (N, 1 + places), right-aligned behind a place for the sign: the symbols, and
    which of them are used."""
    powers = 10 ** np.arange(symbols.shape[1] - 2, -1, -1)  # (places,)
    size = np.abs(value)[:, None]
    symbols[:, 0] = MINUS
    np.add(size // powers % 10, ZERO, out=symbols[:, 1:])
    np.less(value, 0, out=used[:, 0])
    np.greater_equal(size, powers, out=used[:, 1:])
    used[:, -1] = True  # zero has one digit


def _distracted(
    rng: np.random.Generator, text: Tokens, used: np.ndarray
) -> tuple[Tokens, np.ndarray]:
    """The same with places for letters after every used place."""
    count, places = text.shape
    wide = np.empty((count, places, 1 + DISTRACTORS), np.int64)
    wide[:, :, 0] = text
    wide[:, :, 1:] = rng.integers(LETTERS, size=(count, places, DISTRACTORS))
    howmany = rng.integers(1, DISTRACTORS + 1, size=(count, places))
    howmany *= rng.random((count, places)) < 0.5
    here = (np.arange(-1, DISTRACTORS) < howmany[:, :, None]) & used[:, :, None]
    return wide.reshape(count, -1), here.reshape(count, -1)
