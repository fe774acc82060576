"""A compiler that fails, hangs or vanishes: training goes on in torch, and the record says why."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cellgraph import backends
from cellgraph.kernels import compiler, libraries, matrix
from evaluators import Budget, Settings, evaluate, optimizer, training
from evaluators.train import prepare_process
from tests.evaluators.small_tasks import Echo

ADAM = Settings(optimizer="adam", scale=1.0, lr=0.01, clip=5.0, layers=1, params=2000)
SETTINGS = [ADAM, replace(ADAM, optimizer="sgd"), replace(ADAM, layers=2, dropout=0.2)]
BUDGET = Budget(steps=12, eval_every=3)

FAILS = "echo 'error: it is Sunday' >&2; exit 1"
HANGS = "sleep 60"
REASONS = {
    "fails": "exit status 1: error: it is Sunday",
    "hangs": "not done after 0.3 s",
    "vanished": "no C compiler found",
}
Break = Callable[[str], None]


def _forget() -> None:
    """What a new process knows: nothing."""
    matrix._library.cache_clear()
    optimizer._library.cache_clear()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Break]:
    """Breaks the compiler, in a process that has compiled nothing yet."""

    def fake(script: str) -> None:
        path = tmp_path / "fakecc"
        path.write_text(f"#!/bin/sh\necho run >>'{tmp_path}/runs'\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv("CC", str(path))

    def make(how: str) -> None:
        monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(compiler._process, "loaded", {})
        monkeypatch.setattr(compiler._process, "native", {})
        monkeypatch.setattr(libraries._process, "unusable", {})
        monkeypatch.setattr(backends, "_said", set())
        _forget()
        if how == "fails":
            fake(FAILS)
        elif how == "hangs":
            monkeypatch.setattr(compiler, "TIMEOUT", 0.3)
            fake(HANGS)
        else:
            monkeypatch.setattr(compiler, "_zig", lambda: None)
            monkeypatch.setenv("CC", "")
            monkeypatch.setenv("PATH", "")

    yield make
    _forget()


def _numbers(records: list[dict[str, Any]]) -> str:
    """All of it but the time and the reason."""
    kept = [{k: v for k, v in record.items() if k != "fallback"} for record in records]
    return json.dumps([r | {"cost": r["cost"] | {"seconds": 0}} for r in kept], allow_nan=False)


@pytest.mark.parametrize("how", REASONS)
def test_training_goes_on(how: str, broken: Break, tmp_path: Path) -> None:
    native = evaluate("lstm", Echo(), SETTINGS, BUDGET, 1, backend="native")
    assert [r["status"] for r in native] == ["ok"] * 3
    eager = evaluate("lstm", Echo(), SETTINGS, BUDGET, 1, backend="eager")
    broken(how)
    with pytest.warns(RuntimeWarning, match="cells run as torch operations") as said:
        records = evaluate("lstm", Echo(), SETTINGS, BUDGET, 1)
    assert len(said) == 1
    assert REASONS[how] in str(said[0].message)
    for record, expected in zip(records, native, strict=True):
        assert (record["status"], record["error"]) == ("ok", None)
        assert REASONS[how] in record["fallback"]
        assert "\n" not in record["fallback"]
        for row, other in zip(record["curve"], expected["curve"], strict=True):
            assert row == pytest.approx(other, rel=1e-3, abs=0.02)  # one answer of 192 is 0.005
    assert _numbers(records) == _numbers(eager)  # to the last digit
    if how != "vanished":
        # The optimiser once a process, the matrix kernels once a candidate: not once a setting.
        assert (tmp_path / "runs").read_text().count("run") == 2
    evaluate("gru", Echo(), ADAM, 1, 1)  # the same reason is not said again: that would be an error


def test_workers_keep_it_in_the_records(broken: Break) -> None:
    broken("fails")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prepare_process()
        (record,) = evaluate("lstm", Echo(), ADAM, 2, 1)
        warnings.warn("cells of another kind", RuntimeWarning, stacklevel=1)
    assert "it is Sunday" in record["fallback"]
    assert [str(w.message) for w in said] == ["cells of another kind"]


def test_a_compiler_that_vanishes_during_a_training(broken: Break) -> None:
    """What is compiled stays; the next candidate is trained all the same."""
    whole = evaluate("lstm", Echo(), ADAM, BUDGET, 1, backend="native")

    def vanish(step: int, *_: float) -> None:
        if step == 6:
            broken("vanished")

    (record,) = evaluate("lstm", Echo(), ADAM, BUDGET, 1, on_eval=vanish)
    assert _numbers([record]) == _numbers(whole)
    assert "fallback" not in record
    with pytest.warns(RuntimeWarning, match="no C compiler found"):
        (record,) = evaluate("gru", Echo(), ADAM, BUDGET, 1)
    assert (record["status"], len(record["curve"])) == ("ok", 4)
    assert "no C compiler found" in record["fallback"]


def test_a_failure_that_has_nothing_to_do_with_it_keeps_the_reason(broken: Break) -> None:
    broken("vanished")
    mad = replace(ADAM, optimizer="sgd", lr=1e6, clip=1e9)
    with pytest.warns(RuntimeWarning):
        (record,) = evaluate("lstm", Echo(), mad, 200, 1)
    assert record["status"] == "diverged"
    assert "no C compiler found" in record["fallback"]


def test_an_optimiser_that_is_not_compiled_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    native = evaluate("lstm", Echo(), SETTINGS[:2], BUDGET, 1, backend="native")
    monkeypatch.setattr(optimizer, "_library", lambda double: (None, "the optimiser: broken"))
    records = evaluate("lstm", Echo(), SETTINGS[:2], BUDGET, 1, backend="native")
    assert [record["fallback"] for record in records] == ["the optimiser: broken"] * 2
    for record, expected in zip(records, native, strict=True):
        assert record["final"]["loss"] == pytest.approx(expected["final"]["loss"], rel=1e-3)


def test_who_asks_for_eager_starts_no_compiler(broken: Break, tmp_path: Path) -> None:
    broken("fails")
    (record,) = evaluate("lstm", Echo(), ADAM, 2, 1, backend="eager")
    assert record["status"] == "ok"
    assert "fallback" not in record
    assert not (tmp_path / "runs").exists()


def test_who_asks_for_native_is_told_what_is_missing(broken: Break) -> None:
    broken("fails")
    (record,) = evaluate("lstm", Echo(), ADAM, 2, 1, backend="native")
    assert record["status"] == "invalid"
    assert "it is Sunday" in record["error"]


def test_what_a_compiler_takes_is_not_on_the_clock(
    broken: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 s at its limit would end a training that may take 20."""
    now = 0.0

    def load(*_: object, **__: object) -> None:
        nonlocal now
        now += 30.0
        raise compiler.CompilerError("cc: not done after 30 s")

    broken("vanished")
    monkeypatch.setattr(compiler, "load", load)
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter)
    monkeypatch.setattr(training, "time", clock)
    with pytest.warns(RuntimeWarning):
        (record,) = evaluate("lstm", Echo(), ADAM, replace(BUDGET, seconds=20.0), 1)
    assert now == 60.0
    assert record["status"] == "ok"
