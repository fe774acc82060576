"""The registry, the options, and what every task promises to the training loop."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators import data, tasks
from evaluators.errors import DataError
from evaluators.task import Task

NAMES = [
    "memorisation",
    "arithmetic",
    "xml",
    "ptb_word",
    "ptb_char",
    "pydoc_char",
    "nottingham",
    "jsb",
    "piano_midi",
    "chorales",
]
MUSIC = ("nottingham", "jsb", "piano_midi", "chorales")


@pytest.fixture(autouse=True)
def made_up_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small arrays for every data set, and no directory to read anything else from."""
    monkeypatch.delenv("CELLSEARCH_DATA", raising=False)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    data.forget()
    rng = np.random.default_rng(0)
    for name in ("ptb_word", "ptb_char"):
        text = {s: rng.integers(7, size=n).astype(np.int32) for s, n in SIZES.items()}
        data.install(name, {**text, "vocab": np.array(list("abcdefg")), "source": np.array(["me"])})
    for name in MUSIC:
        rolls: dict[str, np.ndarray] = {"source": np.array(["me"])}
        for split in SIZES:
            lengths = rng.integers(2, 60, size=9)
            rolls[f"{split}_lengths"] = lengths
            rolls[split] = (rng.random((lengths.sum(), 88)) < 0.05).astype(np.uint8)
        data.install(name, rolls)
    yield
    data.forget()


SIZES = {"train": 3000, "valid": 500, "test": 501}


def test_the_names_and_aliases() -> None:
    assert tasks.names() == NAMES
    assert tasks.create("language").name == "pydoc_char"
    assert tasks.create("music").name == "chorales"


@pytest.mark.parametrize("name", NAMES)
def test_what_every_task_promises(name: str) -> None:
    task = tasks.create(name)
    assert task.name == name
    assert task.family in ("memory", "arithmetic", "language", "music")
    assert (task.metric, task.maximise, task.loss, task.input_kind) == (
        ("nll", False, "bernoulli", "frames")
        if name in MUSIC
        else ("accuracy", True, "categorical", "tokens")
    )
    held_out = {split: list(task.eval_batches(split)) for split in ("valid", "test")}
    for batch in [*islice(task.train_batches(0), 4), *held_out["valid"], *held_out["test"]]:
        steps, rows = batch.inputs.shape[:2]
        assert 1 <= steps <= task.unroll
        assert batch.targets.shape[:2] == (steps, rows)
        assert batch.mask is None or (
            batch.mask.shape == (steps, rows) and batch.mask.dtype == torch.float32
        )
        if task.input_kind == "tokens":
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            assert batch.inputs.ndim == 2
            assert int(batch.inputs.min()) >= 0
            assert int(batch.inputs.max()) < task.input_width
            assert int(batch.targets.min()) >= 0
            assert int(batch.targets.max()) < task.output_width
        else:
            assert batch.inputs.dtype == batch.targets.dtype == torch.float32
            assert batch.inputs.shape[2] == task.input_width == 88 == batch.targets.shape[2]
    for batches in held_out.values():
        assert batches[0].first
        masks = [batch.mask for batch in batches]
        assert sum(1.0 if mask is None else float(mask.sum()) for mask in masks) > 0
    described = task.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["task"] == name
    assert described["options"]["batch_size"] == task.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_made_again_from_its_description(name: str) -> None:
    task = tasks.create(name, batch_size=3)
    again = tasks.create(name, **task.describe()["options"])
    assert again.describe() == task.describe()
    assert again.batch_size == 3
    ours, theirs = next(task.train_batches(5)), next(again.train_batches(5))
    assert torch.equal(ours.inputs, theirs.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_file_says_what_where_from_and_in_which_unit(name: str) -> None:
    opening = sys.modules[tasks.task_class(name).__module__].__doc__ or ""
    for word in ("Measures:", "Source:", "Metric:"):
        assert word in opening, word
    assert "minimise" in opening if name in MUSIC else "maximise" in opening


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("arithmetik", {}, "unknown task: 'arithmetik'; did you mean 'arithmetic'?"),
        ("zq", {}, "unknown task: 'zq'; known: memorisation, arithmetic"),
        ("xml", {"batchsize": 3}, "unknown option of task xml: 'batchsize'; did you mean 'batch_s"),
        ("language", {"valid_limt": 3}, "option of task pydoc_char: 'valid_limt'; did you mean"),
        ("xml", {"batch_size": 0}, "xml: batch_size must be at least 1, not 0"),
        ("xml", {"unroll": 3.5}, "xml: unroll must be a whole number, not 3.5"),
        ("xml", {"unroll": "35"}, "xml: unroll must be a whole number, not '35'"),
        ("memorisation", {"length": True}, "memorisation: length must be a whole number, not True"),
        ("memorisation", {"symbols": 1}, "memorisation: symbols must be at least 2, not 1"),
        ("arithmetic", {"digits": 18}, "arithmetic: digits must be from 1 to 17, not 18"),
        ("arithmetic", {"distractors": 1}, "arithmetic: distractors must be true or false, not 1"),
        ("ptb_word", {"valid_limit": 1}, "ptb_word: valid_limit must be at least 2, not 1"),
        ("jsb", {"train_limit": 0}, "jsb: train_limit must be at least 1, not 0"),
    ],
)
def test_wrong_names_and_options_get_one_line(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError) as raised:
        tasks.create(name, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_only_valid_and_test_are_held_out(name: str) -> None:
    with pytest.raises(DataError, match="'valid' or 'test', not 'train'"):
        list(tasks.create(name).eval_batches("train"))  # type: ignore[arg-type]


# --- units -------------------------------------------------------------------------------------


def metrics(name: str, loss: float, accuracy: float | None = None) -> dict[str, float]:
    return tasks.create(name).metrics(loss, accuracy)


def test_every_task_reports_its_customary_unit() -> None:
    assert metrics("ptb_word", 4.684, 0.09) == {
        "loss": 4.684,
        "accuracy": 0.09,
        "perplexity": pytest.approx(108.2, abs=0.05),  # Jozefowicz 2015, table 3, GRU
    }
    for name in ("ptb_char", "pydoc_char"):
        assert metrics(name, math.log(2), 0.5)["bits_per_character"] == pytest.approx(1.0)
    for name in MUSIC:
        assert metrics(name, 3.4) == {"loss": 3.4, "nll": 3.4}
    for name in ("memorisation", "arithmetic", "xml"):
        assert metrics(name, 0.7, 0.8) == {"loss": 0.7, "accuracy": 0.8}


def test_a_hopeless_loss_is_still_a_number() -> None:
    assert math.isfinite(metrics("ptb_word", 1e6, 0.0)["perplexity"])
    assert math.isnan(metrics("ptb_word", math.nan, 0.0)["perplexity"])


# --- language ----------------------------------------------------------------------------------


def language(**options: int | None) -> tuple[Task, dict[str, np.ndarray]]:
    return tasks.create("ptb_word", **options), data.load("ptb_word")


def test_training_reads_the_text_as_a_ring_and_one_pass_covers_it_once() -> None:
    task, arrays = language(batch_size=4, unroll=10, train_limit=1000)
    ring = arrays["train"][:1000]
    batches = list(islice(task.train_batches(0), 60))
    assert [batch.first for batch in batches] == [True] + [False] * 59
    for batch, following in pairwise(batches):
        assert torch.equal(batch.inputs[1:], batch.targets[:-1])
        assert torch.equal(following.inputs[0], batch.targets[-1])
    assert task.epoch_steps == 25
    read = torch.cat([batch.inputs for batch in batches[:25]]).numpy()  # (250, 4)
    once_round = read.T.flatten()
    shifts = [shift for shift in range(1000) if (np.roll(ring, -shift) == once_round).all()]
    assert len(shifts) == 1
    other = next(task.train_batches(1)).inputs
    assert not torch.equal(other, batches[0].inputs), "the seed chooses where to begin"


@pytest.mark.parametrize("width", [1, 3, 20, 499, 2000])
@pytest.mark.parametrize("unroll", [1, 7, 1000])
def test_evaluation_predicts_every_token_but_the_first_exactly_once(
    width: int, unroll: int
) -> None:
    task, arrays = language(eval_batch_size=width, unroll=unroll)
    for split in ("valid", "test"):
        batches = list(task.eval_batches(split))
        assert [batch.first for batch in batches] == [True] + [False] * (len(batches) - 1)
        inputs = torch.cat([batch.inputs for batch in batches]).T.flatten()
        targets = torch.cat([batch.targets for batch in batches]).T.flatten()
        masks = [
            torch.ones(batch.inputs.shape) if batch.mask is None else batch.mask
            for batch in batches
        ]
        scored = torch.cat(masks).T.flatten() == 1
        text = torch.from_numpy(arrays[split].astype(np.int64))
        assert torch.equal(targets[scored], text[1:])
        assert torch.equal(inputs[scored], text[:-1])


def test_limits_keep_the_beginning() -> None:
    task, arrays = language(valid_limit=101, eval_batch_size=1)
    predicted = torch.cat([batch.targets for batch in task.eval_batches("valid")])[:, 0]
    assert predicted.tolist() == arrays["valid"][1:101].tolist()
    tiny, _ = language(train_limit=2, batch_size=20)  # far less than a window: it goes round
    assert next(tiny.train_batches(0)).inputs.shape == (35, 20)


# --- music -------------------------------------------------------------------------------------


def pieces(split: str, name: str = "jsb") -> list[np.ndarray]:
    arrays = data.load(name)
    return np.split(arrays[split], np.cumsum(arrays[f"{split}_lengths"])[:-1])


@pytest.mark.parametrize("unroll", [1, 7, 100])
def test_training_windows_cover_every_prediction_once_a_pass(unroll: int) -> None:
    task = tasks.create("jsb", unroll=unroll, batch_size=4)
    assert task.epoch_steps is not None
    wanted = sorted(
        (a.tobytes(), b.tobytes()) for piece in pieces("train") for a, b in pairwise(piece)
    )
    stream = task.train_batches(0)
    for _ in range(2):
        found = []
        for batch in islice(stream, task.epoch_steps):
            assert batch.first
            assert batch.mask is not None
            scored = batch.mask == 1
            assert not batch.targets[~scored].any(), "padding is silence"
            assert len(batch.inputs) == int(batch.mask.sum(0).max()), "no longer than its longest"
            found += [
                (a.astype(np.uint8).tobytes(), b.astype(np.uint8).tobytes())
                for a, b in zip(
                    batch.inputs[scored].numpy(), batch.targets[scored].numpy(), strict=True
                )
            ]
        assert sorted(found) == wanted


def test_training_windows_of_a_piece_differ_by_one_step_at_most() -> None:
    task = tasks.create("jsb", unroll=10, train_limit=1, batch_size=1)
    steps = len(pieces("train")[0]) - 1
    assert task.epoch_steps == -(-steps // 10)
    lengths = [len(batch.inputs) for batch in islice(task.train_batches(0), task.epoch_steps)]
    assert sum(lengths) == steps
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("unroll", [5, 1000])
def test_evaluation_runs_through_whole_pieces(unroll: int) -> None:
    task = tasks.create("jsb", unroll=unroll, eval_batch_size=4)
    found: list[np.ndarray] = []
    group: list[tuple[torch.Tensor, torch.Tensor]] = []

    def close() -> None:
        if group:
            frames = torch.cat([targets for targets, _ in group])
            scored = torch.cat([mask for _, mask in group])
            found.extend(frames[scored[:, row] == 1, row].numpy() for row in range(frames.shape[1]))
            group.clear()

    for batch in task.eval_batches("valid"):
        if batch.first:
            close()
        assert batch.mask is not None
        group.append((batch.targets, batch.mask))
    close()
    assert len(found) == 9
    wanted = sorted(pieces("valid"), key=len)
    for piece, predicted in zip(wanted, found, strict=True):
        assert (piece[1:] == predicted).all()


def test_nobody_can_write_into_the_shared_arrays() -> None:
    for name in ("ptb_char", "jsb"):
        tasks.create(name)
        for array in data.load(name).values():
            with pytest.raises(ValueError, match="read-only"):
                array[...] = array
