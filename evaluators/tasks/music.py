"""Polyphonic music as batches: which of 88 keys sound in the next frame, given the frames so far.

Lives here: what Nottingham, JSB, Piano-midi and the chorales share. Must not live here: files and
formats (evaluators/data/).

A frame is 88 zeros and ones, MIDI notes 21 to 108. A piece of L frames gives L - 1 predictions; the
first frame is only read. The figure is the negative log-likelihood in nats per frame: the sum over
the 88 notes of the Bernoulli NLL, averaged over all predicted frames of the split together (so long
pieces weigh more), as in Boulanger-Lewandowski, Bengio & Vincent 2012.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from evaluators import data
from evaluators.task import Batch, Split, Task, generator, held_out, limits, whole

Frames = NDArray[np.uint8]


class MusicTask(Task):
    """Next-frame prediction on the pieces of one collection."""

    family = "music"
    loss = "bernoulli"
    metric = "nll"
    maximise = False
    unit = "nll"
    input_kind = "frames"
    data_set: ClassVar[str]
    beats: ClassVar[float] = 0.5  # quarter notes in a frame

    def __init__(
        self,
        *,
        batch_size: int = 20,
        unroll: int = 100,
        train_limit: int | None = None,
        valid_limit: int | None = None,
        test_limit: int | None = None,
        eval_batch_size: int = 20,
    ) -> None:
        """unroll: frames in a training window, at most; the limits: pieces kept, the first ones."""
        name = self.name
        self.batch_size = whole(name, "batch_size", batch_size)
        self.unroll = whole(name, "unroll", unroll)
        self._eval_batch = whole(name, "eval_batch_size", eval_batch_size)
        kept = limits(name, train_limit, valid_limit, test_limit, 1)
        super().__init__(
            batch_size=self.batch_size,
            unroll=self.unroll,
            **{f"{split}_limit": most for split, most in kept.items()},
            eval_batch_size=self._eval_batch,
        )
        arrays = data.load(self.data_set)
        self.input_width = self.output_width = arrays["train"].shape[1]
        self._pieces = {
            split: _pieces(arrays[split], arrays[f"{split}_lengths"])[:most]
            for split, most in kept.items()
        }
        self._windows = [
            window for piece in self._pieces["train"] for window in _windows(piece, self.unroll)
        ]
        self.epoch_steps = -(-len(self._windows) // self.batch_size)

    def train_batches(self, seed: int) -> Iterator[Batch]:
        """Passes over all windows, each from the zero state, shuffled anew for every pass.

        Windows of one length share a batch as far as possible (a batch is as long as its longest):
        they are shuffled, then sorted by length, then the batches are shuffled.
        """
        rng = generator(self.name, "train", seed)
        lengths = np.array([len(window) for window in self._windows])
        while True:
            order = rng.permutation(len(lengths))
            order = order[np.argsort(lengths[order], kind="stable")]
            starts = np.arange(0, len(order), self.batch_size)
            for start in rng.permutation(starts).tolist():
                rows = [self._windows[i] for i in order[start : start + self.batch_size]]
                frames, mask = _padded(rows)
                yield Batch(frames[:-1], frames[1:], mask, True)

    def eval_batches(self, split: Split) -> Iterator[Batch]:
        """Whole pieces, sorted by length and grouped; the state runs from beginning to end.

        A group is handed out in stretches of `unroll` steps, `first` only on the first, so that the
        memory of an evaluation does not grow with the longest piece; the figure is not affected.
        """
        pieces = sorted(self._pieces[held_out(self.name, split)], key=len)
        for begin in range(0, len(pieces), self._eval_batch):
            frames, mask = _padded(pieces[begin : begin + self._eval_batch])
            last = len(frames) - 1
            for start in range(0, last, self.unroll):
                stop = min(start + self.unroll, last)
                yield Batch(
                    frames[start:stop], frames[start + 1 : stop + 1], mask[start:stop], start == 0
                )


def _pieces(frames: Frames, lengths: NDArray[np.int64]) -> list[Frames]:
    """The pieces of one split, as views: [(L, F), …]."""
    return np.split(frames, np.cumsum(lengths)[:-1])


def _windows(piece: Frames, unroll: int) -> list[Frames]:
    """The L - 1 predictions of a piece in as few windows of at most `unroll` as will do.

    They differ in length by one at most: cutting off full windows would leave rests of a frame or
    two, whose predictions have next to no past. A window starts with the last frame of the one
    before.
    """
    predictions = len(piece) - 1
    count = -(-predictions // unroll)
    edges = [i * predictions // count for i in range(count + 1)]
    return [piece[a : b + 1] for a, b in itertools.pairwise(edges)]


def _padded(rows: Sequence[Frames]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of L_i frames as one block: (T + 1, B, F) frames and the (T, B) mask of predictions."""
    lengths = np.array([len(row) for row in rows])
    frames = np.zeros((int(lengths.max()), len(rows), rows[0].shape[1]), np.float32)
    for column, row in enumerate(rows):
        frames[: len(row), column] = row
    mask = np.arange(1, len(frames))[:, None] < lengths
    return torch.from_numpy(frames), torch.from_numpy(mask.astype(np.float32))
