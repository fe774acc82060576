"""What workers do to themselves: they fill their memory, wear out, or write where they must not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from search import host, worker
from search.cluster import RayExecutor
from search.errors import SearchError
from search.executor import Outcome, UnitFunction, attempt

LIMIT = 1 << 30
RECYCLE = 10


def unit_function() -> UnitFunction:
    """Nested, so that it travels by value: workers cannot import a test file."""

    def unit(payload: dict[str, Any]) -> dict[str, Any]:
        import builtins
        import os
        import time

        import numpy as np
        import torch

        match payload.get("do"):
            case "fill":
                kept = []
                for _ in range(40):  # 1.3 GB
                    kept.append(
                        np.ones(1 << 22) if payload["by"] == "numpy" else torch.ones(1 << 23)
                    )
                return {"kept": len(kept)}
            case "write":
                # What a careless kernel would do; the array itself refuses.
                import warnings

                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.from_numpy(builtins.cellsearch_test_data)[3] = -1.0  # type: ignore[attr-defined]
        time.sleep(0.01)
        return {"pid": os.getpid(), "x": payload.get("x")}

    return unit


def setup_function() -> Any:
    def keep(data: dict[str, Any]) -> None:
        import builtins

        builtins.cellsearch_test_data = data["text"]  # type: ignore[attr-defined]

    return keep


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with RayExecutor(
        unit_function(),
        workers=2,
        timeout=60.0,
        recycle=RECYCLE,
        memory=LIMIT,
        setup=setup_function(),
        setup_args=({"text": np.arange(200_000.0)},),
    ) as made:
        yield made


def collect(executor: RayExecutor) -> dict[int, Outcome]:
    outcomes: list[Outcome] = []
    while more := executor.wait():
        outcomes += more
    by_unit = {outcome.unit: outcome for outcome in outcomes}
    assert len(by_unit) == len(outcomes)
    return by_unit


def test_workers_are_recycled_and_no_call_is_lost(executor: RayExecutor):
    outcomes: dict[int, Outcome] = {}
    submitted = 0
    # One waits while the other is being replaced, so that this takes more than a few units.
    while len({outcome.worker for outcome in outcomes.values()}) < 4:
        assert submitted < 5000
        while submitted < len(outcomes) + 8:
            executor.submit(submitted, {"x": submitted})
            submitted += 1
        for outcome in executor.wait():
            assert outcome.unit not in outcomes
            outcomes[outcome.unit] = outcome
    outcomes |= collect(executor)
    assert sorted(outcomes) == list(range(submitted))
    assert {(o.status, o.attempts) for o in outcomes.values()} == {("ok", 1)}
    assert [outcomes[i].result["x"] for i in range(submitted)] == list(range(submitted))
    answers = [o.worker for o in outcomes.values()]
    assert len({o.result["pid"] for o in outcomes.values()}) == len(set(answers))
    events = executor.events()
    assert {kind for kind, _ in events} == {"worker_recycled"}
    retired = [detail["worker"] for _, detail in events]
    assert len(set(retired)) == len(retired) >= 2
    assert all(detail["units"] == answers.count(detail["worker"]) for _, detail in events)
    assert all(detail["units"] >= RECYCLE for _, detail in events)


@pytest.mark.parametrize("by", ["numpy", "torch"])
def test_a_unit_that_fills_its_memory_is_tried_on_two_workers(executor: RayExecutor, by: str):
    executor.submit(0, {"do": "fill", "by": by})
    for i in range(1, 5):
        executor.submit(i, {"x": i})
    outcomes = collect(executor)
    full = outcomes.pop(0)
    assert (full.status, full.result, full.attempts) == ("out_of_memory", None, 2)
    assert full.error is not None
    assert "llocate" in full.error
    assert full.error.endswith("(2 of 2 tries)")
    assert {(o.status, o.attempts) for o in outcomes.values()} == {("ok", 1)}


def test_writing_into_shared_data_ends_the_run(executor: RayExecutor):
    def work() -> None:
        for i in range(1, 5000):  # a check is due now and then
            executor.submit(i, {})
            executor.wait()

    executor.submit(0, {"do": "write"})
    with pytest.raises(SearchError, match="the data that the workers share have been written to"):
        work()


def test_checksums_see_every_array_and_copy_none():
    arrays = {"train": np.arange(1000), "valid": np.zeros((3, 4), "float32")}
    before = worker.checksum((arrays, 1))
    assert worker.checksum((arrays, 1)) == before
    arrays["valid"][2, 3] = 1
    assert worker.checksum((arrays, 1)) != before
    arrays["valid"].flags.writeable = False
    arrays["valid"] = np.zeros((3, 4), "float32")
    arrays["valid"].flags.writeable = False
    assert worker.checksum((arrays, 1)) == before
    assert worker.checksum(()) == 0


def test_what_running_out_of_memory_looks_like():
    def torch_like(payload: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …")

    def python_like(payload: dict[str, Any]) -> dict[str, Any]:
        raise MemoryError

    def other(payload: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("sizes of tensors must match")

    statuses = [attempt(f, {})[0] for f in (torch_like, python_like, other)]
    assert statuses == ["out_of_memory", "out_of_memory", "crashed"]


def test_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch):
    limits: list[int] = []
    monkeypatch.setattr(host.resource, "setrlimit", lambda kind, pair: limits.append(pair[0]))
    unlimited = host.resource.RLIM_INFINITY
    monkeypatch.setattr(host.resource, "getrlimit", lambda kind: (unlimited, unlimited))
    monkeypatch.setattr(host, "memory", lambda: 100 << 30)
    monkeypatch.setattr(host, "cores", lambda: 8)
    assert host.limit_memory() == 10 << 30
    assert host.limit_memory(workers=2) == 40 << 30
    assert host.limit_memory(limit=5 << 30) == 5 << 30
    assert host.limit_memory(workers=1000) == 1 << 30  # less would not do
    monkeypatch.setattr(host.resource, "getrlimit", lambda kind: (unlimited, 2 << 30))
    assert host.limit_memory() == 2 << 30  # what an administrator has set stands
    assert limits == [10 << 30, 40 << 30, 5 << 30, 1 << 30, 2 << 30]


def test_this_machine():
    assert 1 <= host.cores() <= (os.cpu_count() or 1)
    assert 1 << 28 < host.memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert host.oom_kills() >= 0
