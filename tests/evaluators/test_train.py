"""The training loop and the model in it: on small tasks made here, whose every number is known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cellgraph as cg
from evaluators import Budget, DataError, Settings, evaluate, tasks
from evaluators.metrics import measure
from evaluators.model import build, count_parameters
from evaluators.task import Batch, Split
from tests.evaluators.small_tasks import Echo, Frames, Stream

ADAM = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=3000)
SGD = Settings(optimizer="sgd", scale=1.0, lr=0.5, clip=5.0, layers=1, params=3000)


pytestmark = pytest.mark.usefixtures("one_thread")


def _timeless(records: list[dict[str, Any]]) -> str:
    return json.dumps(
        [r | {"cost": r["cost"] | {"seconds": 0}} for r in records], sort_keys=True, allow_nan=False
    )


# learning


@pytest.mark.parametrize(
    "settings", [replace(ADAM, params=8000), replace(SGD, lr=1.0, params=8000)]
)
def test_a_gru_learns_to_memorise(settings: Settings) -> None:
    task = tasks.create("memorisation", symbols=8, length=3)
    (record,) = evaluate(
        "gru", task, settings, Budget(steps=600, eval_every=20, target=0.95), seed=1
    )
    assert record["status"] == "ok"
    assert record["metrics"]["accuracy"] >= 0.95  # chance is 1/8
    assert record["curve"][-1][1] < 0.3 * record["curve"][0][1]


@pytest.mark.parametrize("cell", ["gru", "lstm", "tanh_rnn"])
def test_two_layers_with_dropout_learn_a_stream_by_heart(cell: str) -> None:
    (record,) = evaluate(
        cell,
        Stream(),
        replace(ADAM, layers=2, dropout=0.1),
        Budget(steps=200, eval_every=50),
        seed=0,
    )
    assert record["metrics"]["accuracy"] > 0.5  # chance is 0.2
    assert record["cost"]["steps"] == 200


def test_frames_are_learned_below_the_uniform_predictor() -> None:
    (record,) = evaluate("gru", Frames(), ADAM, Budget(steps=100, eval_every=50), seed=0)
    assert (
        record["metrics"]["nll"] == record["metrics"]["loss"] < 5 * math.log(2)
    )  # two of the seven notes are certain
    assert "accuracy" not in record["metrics"]


# the record


def test_the_record_is_complete_and_the_best_evaluation_counts() -> None:
    (record,) = evaluate(
        "gru",
        Echo(),
        ADAM,
        Budget(steps=45, eval_every=10),
        seed=0,
        split_metrics=("valid", "test"),
    )
    assert [row[0] for row in record["curve"]] == [10, 20, 30, 40, 45]
    best = max(record["curve"], key=lambda row: row[3])  # the first of equals
    assert (record["metrics"]["step"], record["metrics"]["accuracy"]) == (best[0], best[3])
    assert (record["final"]["step"], record["final"]["accuracy"]) == (45, record["curve"][-1][3])
    assert set(record["test"]) == {"loss", "accuracy"}
    assert Settings.from_dict(record["setting"]) == ADAM
    cell, cost = cg.load("gru"), record["cost"]
    assert (
        cost["parameters"] == count_parameters(cell, Echo(), cost["hidden_size"], 1) <= ADAM.params
    )
    assert (
        cost["flops_per_step"] > 2 * 6 * cost["hidden_size"] ** 2
    )  # the six square matrices of the GRU
    assert (cost["steps"], record["status"], record["error"]) == (45, "ok", None)
    assert "fallback" not in record
    assert "test" not in evaluate("gru", Echo(), ADAM, 2, seed=0)[0]


def test_test_metrics_are_those_of_the_best_parameters() -> None:
    class Twin(Echo):
        """Tested on the validation split: its metrics must be those of the best evaluation."""

        def eval_batches(self, split: Split) -> Iterable[Batch]:
            return super().eval_batches("valid")

    wild = replace(SGD, lr=1.0, clip=20.0)
    (record,) = evaluate(
        "gru", Twin(), wild, Budget(steps=60, eval_every=1), seed=0, split_metrics=("test",)
    )
    assert record["metrics"]["step"] < 60
    assert record["test"]["loss"] == record["metrics"]["loss"] != record["final"]["loss"]


def test_units_of_language() -> None:
    metrics = evaluate("gru", Stream(), ADAM, 2, seed=0)[0]["metrics"]
    assert metrics["bits_per_character"] == pytest.approx(metrics["loss"] / math.log(2))


def test_on_eval_sees_the_curve() -> None:
    rows: list[list[float]] = []
    (record,) = evaluate(
        "gru", Echo(), ADAM, 5, seed=0, on_eval=lambda *row: rows.append(list(row))
    )
    assert rows == record["curve"]
    assert len(rows) == 5


# determinism


def test_a_setting_does_not_depend_on_its_neighbours() -> None:
    settings = [ADAM, replace(SGD, dropout=0.2), replace(ADAM, dropout=0.5, layers=2)]
    together = evaluate("gru", Echo(), settings, 20, seed=4)
    torch.rand(3)  # the global generator is not ours to rely on
    backwards = evaluate("gru", Echo(), settings[::-1], 20, seed=4)
    alone = [evaluate("gru", Echo(), s.to_dict(), 20, seed=4)[0] for s in settings]
    assert _timeless(together) == _timeless(backwards[::-1]) == _timeless(alone)
    assert len({record["seed"] for record in together}) == 3


def test_seed_cell_and_task_change_the_draws() -> None:
    base = evaluate("gru", Echo(), ADAM, 3, seed=0)[0]
    for other in (
        evaluate("gru", Echo(), ADAM, 3, seed=1),
        evaluate("lstm", Echo(), ADAM, 3, seed=0),
    ):
        assert other[0]["seed"] != base["seed"]
        assert other[0]["curve"] != base["curve"]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    evaluate("gru", Echo(), replace(ADAM, dropout=0.5), 2, seed=0)
    assert torch.equal(torch.rand(4), expected)


SCRIPT = """
import json, sys
from evaluators import evaluate, tasks
from evaluators.train import prepare_process
assert not {"ray", "music21"} & set(sys.modules), "importing evaluators is too expensive"
prepare_process()
json.dump(evaluate(*json.loads(sys.argv[1]), backend="native"), sys.stdout, allow_nan=False)
"""


def test_processes_agree_to_the_last_digit() -> None:
    """Compiled code, in this process twice and in others with other orders of hashing."""
    small = {"layers": 2, "params": 9000, "dropout": 0.1}
    settings = [replace(ADAM, **small).to_dict(), replace(SGD, layers=1, params=5000).to_dict()]
    arguments = ("lstm", "memorisation", settings, 12, 5)
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(arguments)],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in ("0", "1")
    ]
    here = [evaluate(*arguments, backend="native") for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    texts = {_timeless(records) for records in [*here, *map(json.loads, outputs)]}
    assert len(texts) == 1
    assert [len(record["curve"]) for record in here[0]] == [12, 12]
    assert [record["status"] for record in here[0]] == ["ok", "ok"]
    assert not any("fallback" in record for record in here[0])


# state and masks


@pytest.mark.parametrize("cell", ["gru", "lstm"])  # one state, and two
def test_evaluation_carries_the_state(cell: str) -> None:
    model = build(cg.load(cell), Stream(), replace(SGD, scale=3.0, layers=2), seed=0)
    whole, pieces, forgetful = (
        measure(model, t, "valid") for t in (Stream(20), Stream(5), Stream(5, forget=True))
    )
    assert pieces["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert abs(forgetful["loss"] - whole["loss"]) > 1e-3


def test_training_carries_the_state() -> None:
    still = replace(
        SGD, lr=1e-30, scale=3.0
    )  # parameters stay, so the training loss is that of the whole stream
    losses = [
        evaluate("gru", task, still, Budget(steps=20 // task.unroll, eval_every=10), seed=0)[0][
            "curve"
        ][0][1]
        for task in (Stream(20), Stream(5), Stream(5, forget=True))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert abs(losses[2] - losses[0]) > 1e-3


def test_what_is_not_scored_changes_nothing() -> None:
    class Littered(Echo):
        unscored = 3

    assert _timeless(evaluate("gru", Echo(), ADAM, 10, seed=0)) == _timeless(
        evaluate("gru", Littered(), ADAM, 10, seed=0)
    )


# how training ends


def test_divergence_stops_at_once_and_keeps_the_curve() -> None:
    mad = replace(SGD, lr=1e6, clip=1e9)
    (record,) = evaluate("gru", Echo(), mad, Budget(steps=500, eval_every=1), seed=0)
    assert record["status"] == "diverged"
    assert record["cost"]["steps"] < 50
    assert "step" in record["error"]
    assert "\n" not in record["error"]
    assert len(record["curve"]) <= record["cost"]["steps"]
    _timeless([record])  # JSON without NaN


def test_divergence_in_between_keeps_what_was_measured() -> None:
    class Explosive(Echo):
        """Its third batch is beyond any embedding that stays finite: frames of infinity."""

        input_kind, loss, metric, unit, maximise = "frames", "bernoulli", "nll", "nll", False

        def _batch(self, seed: int) -> Batch:
            frames = torch.nn.functional.one_hot(super()._batch(seed).inputs, 6).float()
            return Batch(frames, frames, None, first=True)

        def train_batches(self, seed: int) -> Iterator[Batch]:
            yield self._batch(0)
            yield self._batch(1)
            yield replace(self._batch(2), inputs=torch.full((8, 16, 6), math.inf))

    (record,) = evaluate("gru", Explosive(), ADAM, Budget(steps=500, eval_every=1), seed=0)
    assert record["status"] == "diverged"
    assert [row[0] for row in record["curve"]] == [1, 2]
    assert record["cost"]["steps"] == 2
    assert record["metrics"]["nll"] == min(row[3] for row in record["curve"])


def test_a_target_stops_early() -> None:
    (record,) = evaluate("gru", Echo(), ADAM, Budget(steps=500, eval_every=10, target=0.5), seed=0)
    assert record["status"] == "ok"
    assert record["cost"]["steps"] < 500
    assert [row[3] >= 0.5 for row in record["curve"]].count(True) == 1
    (record,) = evaluate("gru", Frames(), ADAM, Budget(steps=500, eval_every=1, target=4.0), seed=0)
    assert record["final"]["nll"] <= 4.0 < record["curve"][-2][3]


def test_a_schedule_can_end_the_training() -> None:
    still = replace(SGD, lr=1e-30)  # never a gain
    budget = Budget(steps=500, eval_every=2, schedule="halving")
    (record,) = evaluate("gru", Echo(), still, budget, seed=0)
    assert (record["status"], record["cost"]["steps"]) == ("ok", 2 * (1 + 3 + 4))


def test_the_wall_clock_guards() -> None:
    (record,) = evaluate(
        "gru", Echo(), ADAM, Budget(steps=10**9, eval_every=4, seconds=0.05), seed=0
    )
    assert record["status"] == "timeout"
    assert 0 < record["cost"]["steps"] < 10**9
    assert record["curve"]
    assert record["metrics"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no room"), "out_of_memory"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
            ),
            "out_of_memory",
        ),
        (RuntimeError("shapes do\nnot agree"), "crashed"),
        (ZeroDivisionError("division by zero"), "crashed"),
    ],
)
def test_failures_are_data(error: Exception, status: str) -> None:
    class Broken(Echo):
        def eval_batches(self, split: Split) -> Iterable[Batch]:
            raise error

    first, second = evaluate("gru", Broken(), [ADAM, SGD], 4, seed=0)
    assert first["status"] == second["status"] == status
    assert first["error"].startswith(type(error).__name__)
    assert "\n" not in first["error"]
    assert first["cost"]["hidden_size"] > 0


def test_memory_really_runs_out() -> None:
    class Vast(Echo):
        def eval_batches(self, split: Split) -> Iterable[Batch]:
            return [Batch(torch.empty(2**50), torch.empty(0), None, first=True)]

    assert evaluate("gru", Vast(), ADAM, 1, seed=0)[0]["status"] == "out_of_memory"


def test_missing_data_is_an_error_and_no_result() -> None:
    class Absent(Echo):
        def train_batches(self, seed: int) -> Iterator[Batch]:
            raise DataError("no such file")

    with pytest.raises(DataError, match="no such file"):
        evaluate("gru", Absent(), ADAM, 4, seed=0)


@pytest.mark.parametrize("budget", [0, -1, 1.5, {"steps": 3}])
def test_bad_budgets(budget: Any) -> None:
    with pytest.raises(DataError, match="budget"):
        evaluate("gru", Echo(), ADAM, budget, seed=0)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(DataError, match="nowhere"):
        evaluate("gru", "nowhere", ADAM, 1, seed=0)
    with pytest.raises(DataError, match="train"):
        evaluate("gru", Echo(), ADAM, 1, seed=0, split_metrics=("train",))
    with pytest.raises(DataError, match="lr"):
        evaluate("gru", Echo(), ADAM.to_dict() | {"lr": -1}, 1, seed=0)
    with pytest.raises(cg.CellError):
        evaluate("no_such_cell", Echo(), ADAM, 1, seed=0)


def test_notation_is_a_cell() -> None:
    by_text, by_name = (
        evaluate(cell, Echo(), ADAM, 3, seed=0) for cell in (str(cg.load("gru")), "gru")
    )
    assert _timeless(by_text) == _timeless(by_name)
