"""Executors: results come back once, deaths are blamed on the right unit, nothing is printed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import address as addresses
from search import host
from search.cluster import RayExecutor, _is_death, _is_of_node
from search.errors import SearchError
from search.executor import Executor, InlineExecutor, Outcome, UnitFunction

ROOT = Path(__file__).resolve().parents[2]
DATA = np.arange(1_000_000.0)  # large enough for the object store


def unit_function() -> UnitFunction:
    """What the workers run. Nested, so that it travels by value: they cannot import a test file."""

    def unit(payload: dict[str, Any]) -> dict[str, Any]:
        import builtins
        import ctypes
        import os
        import signal
        import time
        from pathlib import Path

        if "pid_file" in payload:
            file = Path(payload["pid_file"])
            if not file.exists():  # the first time only
                file.write_text(str(os.getpid()))
                if payload.get("do") == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)
        time.sleep(payload.get("sleep", 0.0))
        match payload.get("do"):
            case "raise":
                raise ValueError("a clear\nmessage")
            case "exit":
                raise SystemExit(3)
            case "memory":
                raise MemoryError
            case "generator":
                return {"x": (i for i in [])}
            case "change":
                payload["list"].append(1)
            case "segfault":
                ctypes.string_at(0)
            case "hang":
                time.sleep(60)
            case "look":
                import torch

                data = builtins.cellsearch_test_data  # type: ignore[attr-defined]
                return {
                    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
                    "told": [os.environ[f"{name}_NUM_THREADS"] for name in payload["libraries"]],
                    "sum": float(data.sum()),
                    "writeable": data.flags.writeable,
                    "pid": os.getpid(),
                }
        return {"square": payload["x"] ** 2}

    return unit


def setup_function() -> Any:
    def keep(data: Any) -> None:
        import builtins

        builtins.cellsearch_test_data = data  # type: ignore[attr-defined]

    return keep


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[RayExecutor]:
    with RayExecutor(
        unit_function(),
        workers=2,
        timeout=3.0,
        attempts=2,
        setup=setup_function(),
        setup_args=(DATA,),
    ) as executor:
        yield executor


@pytest.fixture(params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Executor:
    if request.param == "inline":
        return InlineExecutor(unit_function())
    return request.getfixturevalue("ray_executor")


def collect(executor: Executor) -> dict[int, Outcome]:
    outcomes: list[Outcome] = []
    while more := executor.wait():
        outcomes += more
    by_unit = {outcome.unit: outcome for outcome in outcomes}
    assert len(by_unit) == len(outcomes)
    return by_unit


def both_up(executor: RayExecutor) -> set[str]:
    """The names of both workers, once both answer."""
    for _ in range(100):
        for i in range(8):
            executor.submit(i, {"x": i, "sleep": 0.05})
        workers = {outcome.worker for outcome in collect(executor).values()}
        if len(workers) == 2:
            executor.events()
            return workers
    raise AssertionError("one of two workers is down")


def test_results(executor: Executor):
    assert executor.wait() == []
    for i in range(100):
        executor.submit(i, {"x": i})
    outcomes = collect(executor)
    assert {i: o.result for i, o in outcomes.items()} == {i: {"square": i * i} for i in range(100)}
    for outcome in outcomes.values():
        assert (outcome.status, outcome.error, outcome.attempts) == ("ok", None, 1)
        assert outcome.worker
        assert 0 <= outcome.seconds < 3
    assert executor.events() == []


@pytest.mark.parametrize(
    ("payload", "status", "error"),
    [
        ({"do": "raise"}, "crashed", "ValueError: a clear"),
        ({"do": "exit"}, "crashed", "SystemExit: 3"),
        ({}, "crashed", "KeyError: 'x'"),
    ],
)
def test_exceptions_are_outcomes(executor: Executor, payload: Any, status: str, error: str):
    executor.submit(7, payload)
    (outcome,) = collect(executor).values()
    assert (outcome.unit, outcome.status, outcome.error) == (7, status, error)
    assert outcome.result is None
    assert outcome.attempts == 1


def test_draining_drops_what_has_not_started():
    executor = InlineExecutor(unit_function())
    executor.submit(0, {"x": 1})
    executor.drain()
    assert executor.wait() == []


def test_a_payload_belongs_to_the_submitter(executor: Executor):
    payload = {"do": "change", "list": [], "x": 1}
    executor.submit(0, payload)
    payload["x"] = 5
    (outcome,) = collect(executor).values()
    assert outcome.result == {"square": 1}
    assert payload["list"] == []


def test_inline_is_interrupted_by_the_keyboard():
    def interrupt(payload: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    executor = InlineExecutor(interrupt)
    executor.submit(0, {})
    executor.submit(1, {})
    with pytest.raises(KeyboardInterrupt):
        executor.wait()
    executor.close()
    assert executor.wait() == []


def test_a_result_that_cannot_be_sent(ray_executor: RayExecutor):
    ray_executor.submit(0, {"do": "generator"})
    (outcome,) = collect(ray_executor).values()
    assert outcome.status == "crashed"
    assert outcome.error == "TypeError: cannot pickle 'generator' object"


def test_waiting_ends(ray_executor: RayExecutor):
    ray_executor.submit(0, {"x": 1, "sleep": 1.0})
    start = time.monotonic()
    assert ray_executor.wait(0.0) == []
    assert ray_executor.wait(0.2) == []
    assert time.monotonic() - start < 0.9
    assert collect(ray_executor)[0].status == "ok"


def test_workers_are_set_up_and_use_one_thread(ray_executor: RayExecutor):
    assert ray_executor.workers == 2
    libraries = ["OMP", "MKL", "OPENBLAS", "NUMEXPR"]
    for i in range(20):
        ray_executor.submit(i, {"do": "look", "libraries": libraries})
    looks = [o.result for o in collect(ray_executor).values()]
    assert all(look is not None for look in looks)
    for look in looks:
        assert look["threads"] == [1, 1]
        assert look["told"] == ["1"] * len(libraries)
        assert look["sum"] == DATA.sum()
        assert not look["writeable"]  # shared by the workers


def test_a_killed_worker_costs_nobody_else_an_attempt(ray_executor: RayExecutor, tmp_path: Path):
    pid_file = tmp_path / "pid"
    ray_executor.submit(0, {"x": 0, "pid_file": str(pid_file), "settings": [{}] * 20})
    for i in range(1, 9):
        ray_executor.submit(i, {"x": i, "sleep": 0.05})
    outcomes: dict[int, Outcome] = {}
    while not pid_file.exists() or not pid_file.read_text():
        outcomes |= {o.unit: o for o in ray_executor.wait(0.05)}
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    outcomes |= collect(ray_executor)
    assert sorted(outcomes) == list(range(9))
    assert {o.status for o in outcomes.values()} == {"ok"}
    assert {i: o.attempts for i, o in outcomes.items()} == {0: 2, **dict.fromkeys(range(1, 9), 1)}
    (event,) = ray_executor.events()
    worker = f"{socket.gethostname()}:{pid_file.read_text()}"
    assert event == ("worker_lost", {"worker": worker, "unit": 0, "reason": "its worker died"})


def test_a_unit_that_kills_its_first_worker_runs_on_the_other(
    ray_executor: RayExecutor, tmp_path: Path
):
    workers = both_up(ray_executor)
    pid_file = tmp_path / "pid"
    ray_executor.submit(0, {"x": 3, "pid_file": str(pid_file), "do": "kill"})
    (outcome,) = collect(ray_executor).values()
    assert (outcome.status, outcome.result, outcome.attempts) == ("ok", {"square": 9}, 2)
    (other,) = workers - {f"{socket.gethostname()}:{pid_file.read_text()}"}
    assert outcome.worker == other


def test_a_unit_whose_worker_freezes_runs_on_the_other(ray_executor: RayExecutor, tmp_path: Path):
    workers = both_up(ray_executor)
    pid_file = tmp_path / "pid"
    ray_executor.submit(0, {"x": 3, "pid_file": str(pid_file)})
    while not pid_file.exists() or not pid_file.read_text():
        ray_executor.wait(0.05)
    os.kill(int(pid_file.read_text()), signal.SIGSTOP)
    (outcome,) = collect(ray_executor).values()
    assert (outcome.status, outcome.result, outcome.attempts) == ("ok", {"square": 9}, 2)
    (other,) = workers - {f"{socket.gethostname()}:{pid_file.read_text()}"}
    assert outcome.worker == other
    assert other in both_up(ray_executor)  # a frozen worker goes too, and leaves its core


def test_a_poisonous_unit_is_given_up_and_the_others_finish(ray_executor: RayExecutor):
    for i in range(8):
        ray_executor.submit(i, {"x": i, "sleep": 0.05, "do": "segfault" if i == 2 else ""})
    outcomes = collect(ray_executor)
    poison = outcomes.pop(2)
    assert (poison.status, poison.attempts) == ("crashed", 2)
    assert poison.error == "its worker died (2 of 2 tries)"
    assert {(o.status, o.attempts) for o in outcomes.values()} == {("ok", 1)}
    assert sorted(outcomes) == [0, 1, 3, 4, 5, 6, 7]


def test_a_unit_that_hangs_is_stopped(ray_executor: RayExecutor):
    for i in range(6):
        ray_executor.submit(i, {"x": i, "do": "hang" if i == 1 else ""})
    outcomes = collect(ray_executor)
    hung = outcomes.pop(1)
    assert (hung.status, hung.attempts) == ("timeout", 2)
    assert hung.error == "no result within 3 s (2 of 2 tries)"
    assert hung.seconds >= 3
    assert {(o.status, o.attempts) for o in outcomes.values()} == {("ok", 1)}


def test_a_worker_that_the_kernel_kills_for_want_of_memory(
    ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
):
    both_up(ray_executor)
    monkeypatch.setattr(host, "oom_kills", lambda: ray_executor._oom_kills + 1)
    ray_executor.submit(0, {"x": 0, "do": "segfault"})
    (outcome,) = collect(ray_executor).values()
    assert (outcome.status, outcome.attempts) == ("out_of_memory", 2)
    assert outcome.error == "its worker was killed because memory ran out (2 of 2 tries)"


def test_errors_of_ray_are_told_apart(ray_executor: RayExecutor):
    """The memory monitor, which is off on one machine, kills workers on clusters."""
    import ray

    memory = ray.exceptions.OutOfMemoryError("low on memory")
    node = ray.exceptions.ActorUnavailableError("no answer", None)
    inside = ray.exceptions.RayTaskError("run", "traceback", ValueError("x"))
    deaths = [_is_death(ray, error) for error in (memory, node, inside, ValueError(), {})]
    assert deaths == [True, True, False, False, False]
    assert [_is_of_node(ray, error) for error in (memory, node)] == [False, True]
    (lane, _) = ray_executor._dispatch.lanes
    assert ray_executor._cause(lane, memory)[0] == "out_of_memory"
    assert ray_executor._cause(lane, node) == ("crashed", "the node of its worker was lost")


def test_one_executor_at_a_time(ray_executor: RayExecutor):
    with pytest.raises(SearchError, match="Ray is in use in this process already"):
        RayExecutor(unit_function(), workers=1)
    ray_executor.submit(0, {"x": 3})
    assert collect(ray_executor)[0].result == {"square": 9}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:1", "no Ray cluster at ray://127.0.0.1:1: [Errno 111] Connection refuse"),
        ("127.0.0.1", "address: expected auto, HOST:PORT or ray://HOST:PORT, not '127.0.0.1'"),
        ("", "address: expected auto, HOST:PORT or ray://HOST:PORT, not ''"),
    ],
)
def test_a_wrong_address(address: str, message: str):
    with pytest.raises(SearchError) as caught:
        RayExecutor(unit_function(), address=address)
    assert str(caught.value).startswith(message)


def test_an_address_that_is_not_rays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(addresses, "ANSWER", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SearchError) as caught:
            RayExecutor(unit_function(), address=address)
    assert str(caught.value) == f"no Ray cluster at {address}: no answer in 3 s"


def test_no_workers():
    with pytest.raises(SearchError, match="workers: expected at least 1, not 0"):
        RayExecutor(unit_function(), workers=0)


def test_importing_costs_neither_ray_nor_torch():
    script = "import search.cluster, sys; print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


QUIET = """
import os, sys, tempfile, warnings
warnings.simplefilter("error")
tempfile.tempdir = sys.argv[1]
before = dict(os.environ)
from search.cluster import RayExecutor
from search.errors import SearchError

def function(payload):
    print("printed by a worker")
    if payload["die"]:
        os.kill(os.getpid(), 9)
    return {}

def setup():
    raise ValueError("no data here")

executor = RayExecutor(function, workers=2, attempts=2)
executor.submit(0, {"die": False})
executor.submit(1, {"die": True})
statuses = set()
while outcomes := executor.wait():
    statuses |= {outcome.status for outcome in outcomes}
assert statuses == {"ok", "crashed"}, statuses
executor.close()
executor.close()
try:
    executor.submit(2, {})
except RuntimeError as error:
    assert str(error) == "this executor is closed"
assert os.listdir(sys.argv[1]) == [], os.listdir(sys.argv[1])
changed = {k for k in {**before, **os.environ} if before.get(k) != os.environ.get(k)}
assert changed <= {"RAY_CLIENT_MODE"}, changed  # which is Ray's own doing

try:  # a second time in the same process
    RayExecutor(function, workers=1, setup=setup)
except SearchError as error:
    sys.exit(str(error))
"""


def test_nothing_is_printed_and_nothing_is_left():
    folder = Path("/tmp") / f"cs-{os.getpid()}"  # sockets need a short path
    folder.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", QUIET, str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        left = list(folder.iterdir())
    finally:
        folder.rmdir()
    assert (done.stdout, done.stderr) == ("", "Ray: no worker is left: ValueError: no data here\n")
    assert done.returncode == 1
    assert left == []
