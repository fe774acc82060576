"""XML: nested tags, each of which has to be closed by its own name.

Measures: predicting the next character of `<qs><mbkz></mbkz></qs>…`; the names of opening tags are
random, those of closing tags are what a stack would say. Source: Jozefowicz, Zaremba & Sutskever
2015, table 1 (column "XML": LSTM 0.42470, GRU 0.45963, best of many settings at up to 1M
parameters). Metric: accuracy of the next character over all positions, maximise.

The generator is the paper's: with probability 1/2, or always after 50 iterations, close the tag
opened last, or end the document when none is open; otherwise open a new one. Names have 2 to 10
lowercase letters. 29 symbols: a-z < / >.

Where the paper is silent, the choice here: the length of a name is uniform; documents follow each
other without a separator, B streams side by side, 35 steps at a time, the state carried over; the
iterations that close what is open after the 50th are those of the same document. A document that
ends before its first tag is empty and leaves no trace in the stream.

Reached on validation, 50,000 parameters, Adam, clip 5, one layer, one seed: GRU 0.451 after 3,000
steps (scale 1.4), LSTM 0.442 after 12,000 (scale 2), tanh network 0.302.
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from evaluators.tasks.streams import GeneratedTask, Piece

ALPHABET = string.ascii_lowercase + "</>"
SHORTEST, LONGEST = 2, 10  # letters in the name of a tag
ITERATIONS = 50  # after these a document only closes
DRAWS = 512  # iterations in one piece, about 2,200 characters


class XML(GeneratedTask):
    """See the module."""

    name = "xml"
    family = "language"
    masked = False

    def __init__(
        self,
        *,
        batch_size: int = 20,
        unroll: int = 35,
        valid_size: int = 35_000,
        test_size: int = 105_000,
        eval_batch_size: int = 100,
    ) -> None:
        """valid_size, test_size: characters of text."""
        self.vocabulary = tuple(ALPHABET)
        self.input_width = self.output_width = len(ALPHABET)
        super().__init__(
            batch_size=batch_size,
            unroll=unroll,
            valid_size=valid_size,
            test_size=test_size,
            eval_batch_size=eval_batch_size,
        )

    def pieces(self, rng: np.random.Generator) -> Iterator[Piece]:
        """Pieces of DRAWS iterations; a document may go on from one piece to the next."""
        code = np.zeros(128, np.int64)
        code[np.frombuffer(ALPHABET.encode(), np.uint8)] = np.arange(len(ALPHABET))
        open_tags: list[str] = []
        iteration = 0
        while True:
            closes = (rng.random(DRAWS) < 0.5).tolist()
            lengths = rng.integers(SHORTEST, LONGEST + 1, size=DRAWS).tolist()
            letters = (rng.integers(26, size=(DRAWS, LONGEST)) + ord("a")).astype(np.uint8)
            names = letters.tobytes().decode("ascii")
            written: list[str] = []
            for draw in range(DRAWS):
                if not (closes[draw] or iteration >= ITERATIONS):
                    tag = names[draw * LONGEST : draw * LONGEST + lengths[draw]]
                    open_tags.append(tag)
                    written.append(f"<{tag}>")
                    iteration += 1
                elif open_tags:
                    written.append(f"</{open_tags.pop()}>")
                    iteration += 1
                else:
                    iteration = 0
            tokens = code[np.frombuffer("".join(written).encode(), np.uint8)]
            yield tokens, np.ones(len(tokens), np.bool_)
