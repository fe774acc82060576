"""Successive halving: who goes on after a rung, and that nobody's numbers depend on the others."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellgraph import backends
from cellgraph.kernels import compiler
from evaluators import Budget, DataError, Rung, Settings, evaluate, model, training
from evaluators.halving import Standing, compare
from evaluators.model import Model
from evaluators.task import Batch, Task
from tests.evaluators.small_tasks import Echo, Frames, Stream

ADAM = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=2000)
SGD = replace(ADAM, optimizer="sgd", lr=0.5)
DROPOUT = replace(ADAM, layers=2, dropout=0.4)
SETTINGS = [DROPOUT, ADAM, SGD, replace(DROPOUT, optimizer="sgd", lr=0.3)]
MAD = replace(SGD, lr=1e6, clip=1e9)


pytestmark = pytest.mark.usefixtures("one_thread")


def _numbers(records: list[dict[str, Any]]) -> str:
    """All of it but the time, and the standings at rungs, which only a training with rungs has."""
    kept = [{key: r[key] for key in r if key != "at_rungs"} for r in records]
    kept = [r | {"cost": r["cost"] | {"seconds": 0}} for r in kept]
    return json.dumps(kept, sort_keys=True, allow_nan=False)


# who goes on


def _stopped(rung: Rung, values: list[float], maximise: bool = True) -> list[int]:
    reasons = compare(1, rung, [Standing(v) for v in values], "accuracy", maximise)
    return [at for at, reason in enumerate(reasons) if reason is not None]


def test_the_best_are_kept_and_of_equals_the_earlier() -> None:
    assert _stopped(Rung(10, keep=2), [0.3, 0.1, 0.4, 0.2]) == [1, 3]
    assert _stopped(Rung(10, keep=2), [0.3, 0.1, 0.4, 0.2], maximise=False) == [0, 2]
    assert _stopped(Rung(10, keep=2), [0.3, 0.3, 0.3]) == [2]
    assert _stopped(Rung(10, keep=2), [0.3, 0.3, 0.3], maximise=False) == [2]
    assert _stopped(Rung(10, keep=1), [0.2, 0.3, 0.3]) == [0, 2]
    assert _stopped(Rung(10, keep=5), [0.3, 0.1]) == []


def test_a_bar_is_reached_in_the_direction_of_the_task() -> None:
    assert _stopped(Rung(10, bar=0.3), [0.3, 0.29, 0.31]) == [1]
    assert _stopped(Rung(10, bar=0.3), [0.3, 0.29, 0.31], maximise=False) == [2]
    assert _stopped(Rung(10, bar=0.5), [0.3, 0.29]) == [0, 1]
    assert _stopped(Rung(10), [0.3, 0.0]) == []


def test_places_are_for_those_that_reach_the_bar() -> None:
    assert _stopped(Rung(10, keep=2, bar=0.25), [0.2, 0.3, 0.1]) == [0, 2]
    assert _stopped(Rung(10, keep=1, bar=0.25), [0.2, 0.3, 0.4]) == [0, 1]


def test_who_has_finished_takes_a_place_by_merit_and_is_never_stopped() -> None:
    def stopped(rung: Rung, *standings: Standing) -> list[bool]:
        return [reason is not None for reason in compare(1, rung, standings, "accuracy", True)]

    done, poor = Standing(0.9, finished=True), Standing(0.1, finished=True)
    assert stopped(Rung(10, keep=2), Standing(0.3), done, Standing(0.4)) == [True, False, False]
    assert stopped(Rung(10, keep=1), Standing(0.3), done) == [True, False]
    assert stopped(Rung(10, keep=1, bar=0.2), poor, Standing(0.3)) == [False, False]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.booleans()), max_size=7),
    st.none() | st.integers(1, 5),
    st.none() | st.sampled_from([0.15, 0.2, 0.35]),
    st.booleans(),
)
def test_whoever_is_stopped_missed_the_bar_or_has_lost_to_enough_others(
    given_: list[tuple[float, bool]], keep: int | None, bar: float | None, maximise: bool
) -> None:
    sign = 1 if maximise else -1
    standings = [Standing(value, finished) for value, finished in given_]
    reasons = compare(1, Rung(10, keep, bar), standings, "nll", maximise)

    def reaches(value: float) -> bool:
        return bar is None or sign * value >= sign * bar

    for at, (standing, reason) in enumerate(zip(standings, reasons, strict=True)):
        ahead = [
            (-sign * other.value, i) < (-sign * standing.value, at)
            for i, other in enumerate(standings)
            if reaches(other.value)
        ]
        lost = keep is not None and sum(ahead) >= keep
        stopped = not standing.finished and (lost or not reaches(standing.value))
        assert (reason is not None) == stopped


def test_reasons_say_what_was_expected() -> None:
    maximised = [Standing(0.12), Standing(0.4), Standing(0.35)]
    assert compare(1, Rung(200, keep=1, bar=0.31), maximised, "accuracy", True) == [
        "rung 1: accuracy 0.12 after 200 steps, expected at least 0.31",
        None,
        "rung 1: not among the best 1 of 3",
    ]
    (reason,) = compare(3, Rung(50, bar=7), [Standing(8.25)], "nll", False)
    assert reason == "rung 3: nll 8.25 after 50 steps, expected at most 7"


# numbers


@pytest.mark.parametrize("schedule", ["cosine", "halving"])
@pytest.mark.parametrize("task", [Echo(), Stream(), Frames()], ids=["echo", "stream", "frames"])
def test_lockstep_changes_no_number(task: Task, schedule: Any) -> None:
    """Dropout between layers, momenta, carried state, streams, schedules: nobody sees the others.

    One step between validations, so that "halving" cuts rates before, between and after rungs."""
    budget = Budget(steps=24, eval_every=1, schedule=schedule)
    rungs = tuple(Rung(steps) for steps in (1, 2, 7, 13, 23))
    splits = ("valid", "test")
    alone = [evaluate("lstm", task, s, budget, 5, split_metrics=splits)[0] for s in SETTINGS]
    together = evaluate("lstm", task, SETTINGS, budget, 5, split_metrics=splits)
    lockstep = evaluate(
        "lstm", task, SETTINGS, replace(budget, rungs=rungs), 5, split_metrics=splits
    )
    assert [record["status"] for record in alone] == ["ok"] * 4
    assert _numbers(lockstep) == _numbers(alone) == _numbers(together)


def test_who_is_stopped_keeps_what_it_had_and_the_others_all() -> None:
    budget = Budget(steps=40, eval_every=5, schedule="cosine")
    alone = [evaluate("gru", Echo(), s, budget, 2)[0] for s in SETTINGS]
    halved = replace(budget, rungs=(Rung(10, keep=3), Rung(20, keep=1)))
    records = evaluate("gru", Echo(), SETTINGS, halved, 2, split_metrics=("test",))

    def best_until(record: dict[str, Any], step: int) -> float:
        return max(float(row[3]) for row in record["curve"] if row[0] <= step)

    order = sorted(range(4), key=lambda at: -best_until(alone[at], 10))
    survivors = sorted(order[:3])
    (winner,) = sorted(survivors, key=lambda at: -best_until(alone[at], 20))[:1]
    for at, (record, whole) in enumerate(zip(records, alone, strict=True)):
        assert record["seed"] == whole["seed"]
        if at == winner:
            assert record.pop("test")["accuracy"] > 0
            assert _numbers([record]) == _numbers([whole])
            continue
        number = 2 if at in survivors else 1
        assert record["status"] == "rejected"
        assert (record["stage"], record["rung"]) == ("rung", number)
        count = {1: 4, 2: 3}[number]
        assert record["error"] == f"rung {number}: not among the best {5 - 2 * number} of {count}"
        assert record["cost"]["steps"] == 10 * number
        assert record["curve"] == whole["curve"][: 2 * number]
        assert record["final"]["step"] == 10 * number
        assert record["metrics"]["accuracy"] == best_until(whole, 10 * number)
        assert record["cost"]["parameters"] == whole["cost"]["parameters"]
        assert record["cost"]["seconds"] > 0
        assert "test" not in record
    assert "stage" not in records[winner]


def test_a_bar_that_nobody_reaches_ends_the_evaluation() -> None:
    class Counted(Echo):
        drawn = 0

        def train_batches(self, seed: int) -> Iterator[Batch]:
            for batch in super().train_batches(seed):
                Counted.drawn += 1
                yield batch

    budget = Budget(steps=1000, eval_every=2, rungs=(Rung(4, keep=2, bar=0.99), Rung(500)))
    records = evaluate("gru", Counted(), [ADAM, SGD], budget, 0)
    assert Counted.drawn == 8
    for record in records:
        value = record["metrics"]["accuracy"]
        assert record["status"] == "rejected"
        assert record["error"] == (
            f"rung 1: accuracy {value:.6g} after 4 steps, expected at least 0.99"
        )
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_a_bar_of_a_loss() -> None:
    alone = [evaluate("gru", Frames(), s, Budget(steps=20, eval_every=5), 0)[0] for s in SETTINGS]
    reached = [min(row[3] for row in record["curve"][:2]) for record in alone]
    bar = sorted(reached)[1]  # the second best: itself enough
    budget = Budget(steps=20, eval_every=5, rungs=(Rung(10, bar=bar),))
    records = evaluate("gru", Frames(), SETTINGS, budget, 0)
    assert [r["status"] == "ok" for r in records] == [value <= bar for value in reached]
    assert [r["status"] for r in records].count("ok") == 2


# scripted values: a setting is told by its hidden size

SIZES = [replace(ADAM, params=count) for count in (900, 1300, 1800, 2400)]
Script = list[list[float]]


def _scripted(monkeypatch: pytest.MonkeyPatch, script: Script, rungs: list[Rung]) -> Any:
    """Records of the first settings of SIZES, whose n-th validations yield the n-th values of
    their lines; a step between validations."""
    left: dict[int, Iterator[float]] = {}
    lines = iter(script)

    def measure(measured: Model, task: Task, split: str) -> dict[str, float]:
        if measured.hidden_size not in left:
            left[measured.hidden_size] = iter(next(lines))
        return {"loss": 1.0, "accuracy": next(left[measured.hidden_size])}

    monkeypatch.setattr(training, "measure", measure)
    budget = Budget(steps=len(script[0]), eval_every=1, target=0.95, rungs=tuple(rungs))
    return evaluate("gru", Echo(), SIZES[: len(script)], budget, 0)


def _ends(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(r["status"], r["cost"]["steps"]) for r in records]


def test_the_best_so_far_counts_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[0.5, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4, 0.4], [0.1, 0.4, 0.4, 0.4]]
    records = _scripted(monkeypatch, script, [Rung(2, keep=2)])
    assert _ends(records) == [("ok", 4), ("rejected", 2), ("ok", 4)]
    assert records[1]["metrics"] == {"loss": 1.0, "accuracy": 0.3, "step": 2}


def test_ties_go_to_the_earlier_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[0.2, 0.2, 0.2], [0.3, 0.1, 0.1], [0.1, 0.3, 0.1], [0.3, 0.3, 0.3]]
    records = _scripted(monkeypatch, script, [Rung(2, keep=2)])
    assert _ends(records) == [("rejected", 2), ("ok", 3), ("ok", 3), ("rejected", 2)]


def test_two_rungs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[0.2] * 6, [0.1] * 6, [0.3, 0.3, 0.3, 0.3, 0.4, 0.4], [0.4] * 6]
    records = _scripted(monkeypatch, script, [Rung(2, bar=0.2), Rung(4, keep=1)])
    assert _ends(records) == [("rejected", 4), ("rejected", 2), ("rejected", 4), ("ok", 6)]
    assert [record.get("rung") for record in records] == [2, 1, 2, None]
    assert records[0]["error"] == "rung 2: not among the best 1 of 3"
    standings = [record["at_rungs"] for record in records]  # the best until then
    assert standings == [[0.2, 0.2], [0.1], [0.3, 0.3], [0.4, 0.4]]


def test_a_target_before_the_rung_takes_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[0.3] * 4, [0.96] * 4, [0.4] * 4]
    records = _scripted(monkeypatch, script, [Rung(2, keep=2), Rung(3, keep=1)])
    assert _ends(records) == [("rejected", 2), ("ok", 1), ("rejected", 3)]
    assert records[2]["error"] == "rung 2: not among the best 1 of 2"
    assert [record["at_rungs"] for record in records] == [[0.3], [0.96, 0.96], [0.4, 0.4]]


def test_lockstep_ends_at_the_last_rung() -> None:
    """Up to a rung in turns, behind the last one after the other; without rungs never in turns."""

    def order(rungs: tuple[Rung, ...]) -> list[int]:
        seen: list[int] = []
        budget = Budget(steps=4, eval_every=1, rungs=rungs)
        evaluate("gru", Echo(), [ADAM, SGD], budget, 0, on_eval=lambda step, *_: seen.append(step))
        return seen

    assert order(()) == [1, 2, 3, 4, 1, 2, 3, 4]
    assert order((Rung(1), Rung(3))) == [1, 1, 2, 3, 2, 3, 4, 4]


# failures on the way


def test_who_diverges_takes_no_place() -> None:
    budget = Budget(steps=300, eval_every=50)
    assert evaluate("gru", Echo(), MAD, budget, 0)[0]["status"] == "diverged"
    rungs = (Rung(100, keep=1), Rung(200, keep=1))
    alone, *_ = evaluate("gru", Echo(), ADAM, budget, 0)
    mad, good = evaluate("gru", Echo(), [MAD, ADAM], replace(budget, rungs=rungs), 0)
    assert (mad["status"], "stage" in mad, "rung" in mad) == ("diverged", False, False)
    assert mad["cost"]["steps"] < 50
    assert _numbers([good]) == _numbers([alone])


def test_an_end_by_the_schedule_is_an_end_with_honour() -> None:
    still = replace(SGD, lr=1e-30)  # never a gain: 1 + 3 + 4 evaluations
    budget = Budget(steps=60, eval_every=2, schedule="halving", rungs=(Rung(18, bar=0.999),))
    free = replace(budget, rungs=())  # a seed with which the other one gains all the time
    seed = next(
        s for s in range(20) if evaluate("gru", Echo(), [ADAM], free, s)[0]["cost"]["steps"] > 18
    )
    ended, learner = evaluate("gru", Echo(), [still, ADAM], budget, seed)
    assert (ended["status"], ended["cost"]["steps"]) == ("ok", 16)
    assert (learner["status"], learner["cost"]["steps"]) == ("rejected", 18)


def test_a_crash_in_one_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [[0.3] * 3, [0.5], [0.4] * 3]  # the second has no more values after its first
    records = _scripted(monkeypatch, script, [Rung(2, keep=1)])
    assert [r["status"] for r in records] == ["rejected", "crashed", "ok"]
    assert records[0]["error"] == "rung 1: not among the best 1 of 2"
    assert len(records[1]["curve"]) == 1
    assert "at_rungs" not in records[1]


def test_missing_data_is_an_error_in_lockstep_too() -> None:
    class Torn(Echo):
        def train_batches(self, seed: int) -> Iterator[Batch]:
            yield self._batch(0)
            raise DataError("the rest of the file is missing")

    with pytest.raises(DataError, match="the rest"):
        evaluate("gru", Torn(), [ADAM, SGD], Budget(steps=4, eval_every=1, rungs=(Rung(1),)), 0)


class _Slow(Echo):
    """A second a batch, on a clock that only this moves."""

    def __init__(self, clock: SimpleNamespace) -> None:
        super().__init__()
        self.clock = clock

    def train_batches(self, seed: int) -> Iterator[Batch]:
        for batch in super().train_batches(seed):
            self.clock.now += 1.0
            yield batch


@pytest.mark.parametrize(("seconds", "status", "steps"), [(31.5, "ok", 32), (20.5, "timeout", 24)])
def test_only_its_own_time_counts(
    seconds: float, status: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs from the first step on and is looked at after every eighth step."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(training, "time", clock)
    budget = Budget(steps=32, eval_every=4, seconds=seconds, rungs=(Rung(4), Rung(12), Rung(28)))
    records = evaluate("gru", _Slow(clock), [ADAM, SGD, DROPOUT], budget, 0)
    assert _ends(records) == [(status, steps)] * 3
    assert [record["cost"]["seconds"] for record in records] == [float(steps)] * 3
    assert clock.now == 3 * steps


def test_a_compiler_that_fails_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate("gru", Echo(), ADAM, 1, 0)  # optimiser and matrix kernels are there
    asked = []

    def load(*_: object, **__: object) -> None:
        asked.append(1)
        raise compiler.CompilerError("cc: not done after 30 s")

    monkeypatch.setattr(compiler, "load", load)
    monkeypatch.setattr(backends, "_said", set())
    budget = Budget(steps=6, eval_every=1, rungs=(Rung(2), Rung(4, keep=2)))
    with pytest.warns(RuntimeWarning, match="not done after 30 s"):
        records = evaluate("lstm", Echo(), [ADAM, SGD, DROPOUT], budget, 0)
    assert len(asked) == 1
    assert [record["fallback"] for record in records] == ["cc: not done after 30 s"] * 3
    assert sorted(record["status"] for record in records) == ["ok", "ok", "rejected"]


def test_a_fallback_is_said_by_those_that_fell_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler breaks when the first setting is at its rung: that one stays compiled."""

    def load(*_: object, **__: object) -> None:
        raise compiler.CompilerError("gone")

    def vanish(step: int, *_: float) -> None:
        monkeypatch.setattr(compiler, "load", load)

    budget = Budget(steps=4, eval_every=1, rungs=(Rung(2),))
    whole, *_ = evaluate("gru", Echo(), ADAM, replace(budget, rungs=()), 0)
    monkeypatch.setattr(backends, "_said", set())
    with pytest.warns(RuntimeWarning, match="gone"):
        first, second = evaluate("gru", Echo(), [ADAM, SGD], budget, 0, on_eval=vanish)
    assert _numbers([first]) == _numbers([whole])
    assert (second["status"], second["fallback"]) == ("ok", "gone")


# what a process holds and leaves behind


def test_memory_is_given_back_when_a_setting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[Model]] = []
    build = model.build

    def watched(*arguments: Any) -> Model:
        built = build(*arguments)
        models.append(weakref.ref(built))
        return built

    monkeypatch.setattr(training, "build", watched)

    def alive(rungs: tuple[Rung, ...]) -> list[int]:
        counts: list[int] = []

        def count(*_: float) -> None:
            counts.append(sum(one() is not None for one in models))

        budget = Budget(steps=3, eval_every=1, rungs=rungs)
        evaluate("gru", Echo(), SIZES[:3], budget, 0, on_eval=count)
        models.clear()
        return counts

    assert alive(()) == [1] * 9
    assert alive((Rung(1, keep=2), Rung(2, keep=1))) == [1, 2, 3, 2, 2, 1]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    evaluate("gru", Echo(), [DROPOUT, MAD], Budget(steps=4, eval_every=1, rungs=(Rung(2),)), 0)
    assert torch.equal(torch.rand(4), expected)
