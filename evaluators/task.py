"""What a task is: batches to train on, batches to be judged on, and the unit it is reported in.

Lives here: `Batch`, `Task` and the seeding rule that all tasks share. Must not live here: any
particular task (evaluators/tasks/, one file each), reading of files (evaluators/data/), training.

Letters: T steps, B rows of a batch, V vocabulary, F notes in a frame.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from evaluators import data
from evaluators.errors import DataError

Split = Literal["valid", "test"]
Unit = Literal["perplexity", "bits_per_character", "nll"]


@dataclass(frozen=True)
class Batch:
    """One call of the layer. The tensors may be views of shared memory: read them, never write.

    inputs: (T, B) int64 tokens, or (T, B, F) float32 frames
    targets: (T, B) int64, or (T, B, F) float32, what should be predicted at the same step
    mask: (T, B) float32, 1 where the step is scored; None means every step. A mask may be all
        zero (a short window without an answer in it): divide by max(mask.sum(), 1).
    first: True: the state starts at zero; False: it is carried over, detached, from the last batch
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None
    first: bool


class Task(ABC):
    """A problem that a cell is trained and judged on.

    The class says what kind of problem it is, the object holds the options. Two objects with equal
    options give equal batches on every machine: nothing but the options and the seed enters.
    """

    name: ClassVar[str]
    family: ClassVar[Literal["memory", "arithmetic", "language", "music"]]
    # categorical: cross-entropy in nats per scored step; bernoulli: the sum over the notes of a
    # frame of the Bernoulli negative log-likelihood, in nats, averaged over the scored frames.
    loss: ClassVar[Literal["categorical", "bernoulli"]]
    metric: ClassVar[Literal["accuracy", "nll"]]  # the number a search compares
    maximise: ClassVar[bool]
    unit: ClassVar[Unit | None] = None  # the number a paper prints, next to loss and accuracy
    input_kind: ClassVar[Literal["tokens", "frames"]]
    data_set: ClassVar[str | None] = None  # the name for data.load; None: nothing is read

    input_width: int  # V, or F
    output_width: int
    batch_size: int
    unroll: int  # the longest T of any batch
    # What every token is as text; None where tokens are no text, and for frames.
    vocabulary: tuple[str, ...] | None = None
    epoch_steps: int | None = None  # training batches in one pass over the data; None: endless data

    def __init__(self, **options: int | bool | None) -> None:
        """options: every option of the task with its checked value, as `describe` shows them."""
        self.options = options

    @abstractmethod
    def train_batches(self, seed: int) -> Iterator[Batch]:
        """Batches without end, a pure function of the options and the seed."""

    @abstractmethod
    def eval_batches(self, split: Split) -> Iterable[Batch]:
        """One pass over the held-out data, the same for every cell and every seed.

        Raises DataError for a split other than "valid" and "test".
        """

    def metrics(self, loss: float, accuracy: float | None = None) -> dict[str, float]:
        """Every number worth printing for a mean loss in nats per scored step.

        Returns loss, accuracy where there is one, and the customary unit of the task: perplexity
        (word language models), bits_per_character, or nll (music, nats per frame).
        """
        result = {"loss": loss}
        if accuracy is not None:
            result["accuracy"] = accuracy
        if self.unit == "perplexity":
            result["perplexity"] = math.exp(min(loss, 700.0))  # e^709 overflows a double
        elif self.unit == "bits_per_character":
            result["bits_per_character"] = loss / math.log(2)
        elif self.unit == "nll":
            result["nll"] = loss
        return result

    def describe(self) -> dict[str, Any]:
        """The options and the checksum of the data, JSON-able: what a run writes down."""
        described: dict[str, Any] = {"task": self.name, "options": dict(self.options), "data": None}
        if self.data_set is not None:
            described["data"] = {
                "name": self.data_set,
                "sha256": data.checksum(self.data_set),
                "source": data.source(self.data_set),
            }
        return described


def generator(task: str, split: str, seed: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one stream of one split; no two splits share a stream for any seed.

    The name is hashed rather than added to the seed, so that train with seed 1 is not valid with
    seed 0, and so that no value of PYTHONHASHSEED plays a part.
    """
    text = f"cellsearch/{task}/{split}/{seed}/{stream}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def whole(task: str, option: str, value: object, low: int = 1, high: int | None = None) -> int:
    """An option that must be a whole number from low to high; DataError otherwise."""
    # bool is an int in Python, but `length: true` in a configuration is a slip.
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{task}: {option} must be a whole number, not {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"{task}: {option} must be {bounds}, not {value}")
    return value


def limit(task: str, option: str, value: object, low: int = 2) -> int | None:
    """An option that shortens the data: None for all of them, else at least `low` units."""
    return None if value is None else whole(task, option, value, low)


def limits(
    task: str, train: object, valid: object, test: object, low: int = 2
) -> dict[str, int | None]:
    """The checked limits of all splits by their names, from the options `SPLIT_limit`."""
    given = {"train": train, "valid": valid, "test": test}
    return {split: limit(task, f"{split}_limit", value, low) for split, value in given.items()}


def switch(task: str, option: str, value: object) -> bool:
    """An option that must be true or false; DataError otherwise."""
    if not isinstance(value, bool):
        raise DataError(f"{task}: {option} must be true or false, not {value!r}")
    return value


def held_out(task: str, split: str) -> Split:
    """The name of a held-out split, checked; DataError otherwise."""
    if split == "valid":
        return "valid"
    if split == "test":
        return "test"
    raise DataError(f"{task}: a held-out split is 'valid' or 'test', not {split!r}")
