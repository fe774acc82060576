"""`cellsearch bench search`: what is counted and computed around a clock, never the time."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest

import cellgraph as cg
from search import cli, launch
from search.bench import child, ledger, noop, overhead, proposals, search, search_summary
from search.bench.noop import NoOp
from search.bench.overhead import Gauge, Mark
from search.bench.request import CANDIDATES, SEARCH_PARTS, SearchRequest
from search.bench.search import INLINE, RAY, Calls, Findings, Run
from search.errors import SearchError
from search.executor import InlineExecutor, Outcome
from search.journal import FILE, Journal
from search.launch import Plan


@pytest.fixture(scope="module")
def ready() -> Plan:
    return launch.plan(noop.config(30, 0))


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a search of 30 candidates."""
    return overhead.small(tmp_path_factory.mktemp("small") / "run", 30, 0).payloads


# -- evaluations that do nothing


def test_the_search_without_training_is_the_standard_one(ready: Plan) -> None:
    standard = cli_config()
    assert ready.config.search.seeds == standard.search.seeds
    assert ready.config.virtual_workers == standard.virtual_workers
    assert ready.config.search.candidates == 30
    assert [stage.task.data_set for stage in ready.stages] == [None] * 3
    for stage, task in zip(ready.stages[1:], standard.tasks, strict=False):
        assert (stage.budget.steps, stage.budget.eval_every) == (task.steps, task.eval_every)


def cli_config() -> Any:
    from search import config

    return config.load("standard")


def test_records_depend_on_the_payload_alone(ready: Plan, payloads: list[dict[str, Any]]) -> None:
    function = NoOp.of(ready.stages)
    before = json.dumps(payloads)
    found = [function(payload)["records"] for payload in payloads]
    assert found == [NoOp.of(ready.stages)(payload)["records"] for payload in payloads]
    assert json.dumps(payloads) == before
    assert [len(records) for records in found] == [len(p["settings"]) for p in payloads]
    json.dumps(found, allow_nan=False)
    statuses = Counter(record["status"] for records in found for record in records)
    assert statuses["ok"] > 0.3 * statuses.total()


def test_seeds_pass_and_candidates_pass_or_fail(ready: Plan) -> None:
    function, first = NoOp.of(ready.stages), ready.stages[0]
    settings = [first.grid[0].to_dict()]
    base = {"stage": first.name, "settings": settings, "rungs": [], "screen": True}
    (record,) = function({**base, "cell": str(cg.load("gru")), "screen": False})["records"]
    assert record["metrics"]["accuracy"] > 0.95
    assert [row[0] for row in record["curve"]] == sorted({row[0] for row in record["curve"]})
    outcomes = Counter[str]()
    for number in range(300):
        cell = f"cell child_{number}(x, h)\n    h' = tanh(W @ x + U @ h)\n"
        (record,) = function({**base, "cell": cell})["records"]
        reached = record["metrics"].get("accuracy", 0.0) > 0.95
        outcomes[record.get("stage") or ("passed" if reached else "failed")] += 1
    assert set(outcomes) == {"screen", "passed", "failed"}
    assert 10 < outcomes["screen"] < 60
    assert 60 < outcomes["passed"] < 140


def test_rungs_stop_settings_as_in_training(ready: Plan) -> None:
    function, stage = NoOp.of(ready.stages), ready.stages[1]
    settings = [stage.grid[index].to_dict() for index in range(6)]
    payload = {"cell": str(cg.load("gru")), "stage": stage.name, "settings": settings}
    steps = stage.budget.eval_every
    whole = function({**payload, "rungs": [], "screen": False})["records"]
    rungs = [{"steps": steps, "keep": 2, "bar": None}]
    halved = function({**payload, "rungs": rungs, "screen": False})["records"]
    reached = [record["curve"][0][3] for record in whole]
    best = sorted(range(6), key=lambda i: -reached[i])[:2]
    assert [r["status"] == "ok" for r in halved] == [i in best for i in range(6)]
    assert [record["at_rungs"] for record in halved] == [[value] for value in reached]
    for record in (r for r in halved if r["status"] == "rejected"):
        assert (record["stage"], record["curve"][-1][0]) == ("rung", steps)
    rungs = [{"steps": steps, "keep": None, "bar": 2.0}]
    none = function({**payload, "rungs": rungs, "screen": False})["records"]
    assert {record["status"] for record in none} == {"rejected"}


# -- what is counted


class Counting:
    """An executor that brings results in another order, and knows how many were under way."""

    workers = 2

    def __init__(self) -> None:
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.most = 0
        self.seen: list[int] = []

    def submit(self, unit: int, payload: dict[str, Any]) -> None:
        self.pending.append((unit, payload))
        self.most = max(self.most, len(self.pending))

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        done, self.pending = self.pending[-2:], self.pending[:-2]
        self.seen += [unit for unit, _ in done]
        return [Outcome(unit, "ok", payload, None, 0.0, "fake", 1) for unit, payload in done]


def test_calls_without_a_search_are_all_made_and_few_at_a_time() -> None:
    executor = Counting()
    made = overhead._submitted(cast("Any", executor), ({"n": n} for n in range(23)), workers=2)
    assert sorted(cast("Outcome", outcome).unit for outcome in made) == list(range(23))
    assert executor.most == 4
    called: list[int] = []

    def function(payload: dict[str, Any]) -> int:
        called.append(payload["n"])
        return int(payload["n"])

    with ThreadPoolExecutor(2) as pool:
        given = ({"n": n} for n in range(23))
        processes, no_op = cast("ProcessPoolExecutor", pool), cast("NoOp", function)
        results = overhead._pooled(processes, no_op, given, 2)
        assert sorted(cast("Iterator[int]", results)) == sorted(called) == list(range(23))


def test_marks_at_every_tenth_and_what_follows_from_them(ready: Plan, tmp_path: Path) -> None:
    document = {"workers": 0, "candidates": 30, "seed": 0, "directory": str(tmp_path / "run")}
    said: list[tuple[str, int, int]] = []
    found = overhead._loop(document, lambda *words: said.append(words))
    done = [mark["done"] for mark in found["marks"]]
    assert done == sorted(done)
    assert done[0] <= 1
    assert done[-1] == 30
    assert len(done) == 11
    assert {words[2] for words in said} == {30}
    with Journal.read(tmp_path / "run") as journal:
        assert found["marks"][-1]["units"] == journal.counts()["results"]
    again = overhead._resume(document, lambda *words: None)
    assert (again["pool"], again["funnel"]) == (found["pool"], found["funnel"])


def test_a_resumption_that_runs_units_again_is_an_error(tmp_path: Path) -> None:
    document = {"workers": 0, "candidates": 20, "seed": 0, "directory": str(tmp_path / "run")}
    overhead._loop(document, lambda *words: None)
    with closing(sqlite3.connect(tmp_path / "run" / FILE)) as database:
        database.execute("DELETE FROM results WHERE unit = (SELECT max(unit) FROM results)")
        database.commit()
    with pytest.raises(SearchError, match="run 1 units again"):
        overhead._resume(document, lambda *words: None)


def _found(marks: list[Mark], pool: str = "p") -> dict[str, Any]:
    rows = [vars(mark) for mark in marks]
    return {"marks": rows, "peak": 9, "pool": pool, "funnel": [["a", 2, 1]]}


def test_figures_of_a_run() -> None:
    marks = [
        Mark(0, 1.0, 0.5, 1000, 5),
        Mark(10, 2.0, 1.0, 3000, 30),
        Mark(20, 2.5, 1.25, 4000, 50),
    ]
    run = Run.of(100, _found([*marks, Mark(100, 4.0, 2.0, 12000, 200)]))
    assert (run.ms, run.cpu_ms, run.seconds, run.units) == (40.0, 20.0, 4.0, 2.0)
    assert run.steady_ms == pytest.approx(1e3 * 2 / 90)  # from 10 to 100
    assert run.steady_cpu_ms == pytest.approx(1e3 / 90)
    assert run.growth == 100.0
    assert run.tenths == pytest.approx((100.0, 50.0, 18.75))
    with pytest.raises(SearchError, match="too few"):
        Run.of(5, _found([Mark(5, 1.0, 0.5, 1000, 5)]))


def test_rows_of_a_journal_under_new_ids(tmp_path: Path) -> None:
    overhead.small(tmp_path / "run", 20, 0)
    rows = ledger.Rows.of(tmp_path / "run")
    numbers = range(2 * len(rows.units))
    with Journal.create(tmp_path / "copy", {}) as journal:
        made = [rows.proposal(number) for number in numbers]
        journal.write([c for c, _ in made], [u for _, u in made])
        assert journal.write(results=[rows.result(n) for n in numbers]) == len(numbers)
    with Journal.read(tmp_path / "run") as before, Journal.read(tmp_path / "copy") as after:
        records = [row.records for row in before.results()]
        assert [row.records for row in after.results()] == records * 2


def test_children_are_distinct_and_in_normal_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "ROUNDS", 2)
    monkeypatch.setattr(proposals, "CHILDREN", 5)
    monkeypatch.setattr(proposals, "PARENTS", 4)
    met: list[str] = []
    propose = proposals._propose

    def noted(*arguments: Any) -> Any:
        children, draws = propose(*arguments)
        assert [cg.simplify(cell) for cell in children] == children
        met.extend(cell.key() for cell in children)
        return children, draws

    monkeypatch.setattr(proposals, "_propose", noted)
    found = proposals.answer({"seed": 3}, lambda *words: None)
    kinds = len(proposals.EDITS)
    assert len(met) == 10 * kinds
    assert all(len({*met[i : i + 10]}) == 10 for i in range(0, len(met), 10))
    assert all(len(kind["rounds"]) == 2 for kind in found["proposals"].values())
    assert all(kind["draws_per_child"] >= 1 for kind in found["proposals"].values())
    assert set(found["steps"]) == {"simplify", "key", "fingerprint", "print", "parse"}


# -- the whole, in one process


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Measurements in this process, Ray's in the place of none; the documents that they were
    given."""
    documents: list[dict[str, Any]] = []

    def run(module: str, document: dict[str, Any], say: child.Say) -> Any:
        documents.append({"module": module, **document})
        answer = import_module(module).answer(document, say)
        return json.loads(json.dumps(answer, allow_nan=False))

    def inline(function: Any, *, workers: int) -> InlineExecutor:
        return InlineExecutor(function)

    class Threads(ThreadPoolExecutor):
        def __init__(self, workers: int, context: object) -> None:
            super().__init__(workers)

    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(overhead, "RayExecutor", inline)
    monkeypatch.setattr(overhead, "ProcessPoolExecutor", Threads)
    for module, name, value in (
        (overhead, "SAMPLE", 20),
        (overhead, "WARM_UP", 2),
        (ledger, "CANDIDATES", 20),
        (ledger, "DRAINS", {1: 3, 2: 2}),
        (ledger, "SYNCS", 2),
        (proposals, "CHILDREN", 3),
        (proposals, "PARENTS", 3),
        (search, "REPEATS", 2),
        (search, "CALLS", 20),
    ):
        monkeypatch.setattr(module, name, value)
    return documents


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["bench", "search", *words])
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_one_json_document(
    little: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--candidates", "30", "20", "--json", "--folder", str(tmp_path)]
    status, out, err = bench(capsys, *words)
    assert status == 0, err
    document = json.loads(out)
    assert document["version"] == search.VERSION
    assert set(document["loops"]) == {INLINE, RAY}
    every = (*document["loops"].values(), document["resumed"])
    assert [[run["candidates"] for run in runs] for runs in every] == [[20, 30]] * 3
    assert len({(runs[0]["pool"], runs[1]["pool"]) for runs in every}) == 1
    assert [drain["results"] for drain in document["ledger"]["drains"]] == [1, 2]
    assert document["calls"]["units"] == 20
    measured = {t["what"]: t["measured"] for t in document["summary"]["targets"]}
    missing = [what for what, value in measured.items() if value is None]
    assert missing == ["seconds to resume 100,000 candidates"]
    asked = Counter((d["module"].rpartition(".")[2], d.get("what")) for d in little)
    assert asked["overhead", "loop"] == 8  # two sizes, two kinds of workers, twice
    assert asked["overhead", "resume"] == 2
    assert asked["overhead", "calls"] == asked["ledger", None] == asked["proposals", None] == 1
    assert not any(tmp_path.iterdir())


def test_tables_and_parts(little: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = bench(capsys, "--candidates", "20", "--parts", "resume")
    assert status == 0, err
    assert "resuming a finished run" in out
    assert "distinct valid children" not in out
    assert [document["what"] for document in little] == ["loop", "resume"]
    status, out, _ = bench(capsys, "--candidates", "20", "--parts", "keys,ledger,loop")
    assert status == 0
    for words in ("fingerprint", "2 results", "2 Ray workers", "/ process pool", "should be"):
        assert words in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]


@pytest.mark.usefixtures("little")
def test_runs_that_disagree_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found, pools = overhead._found, iter("ab")

    def differing(gauge: Gauge) -> dict[str, Any]:
        return {**found(gauge), "pool": next(pools)}

    monkeypatch.setattr(overhead, "_found", differing)
    monkeypatch.setattr(search, "REPEATS", 1)
    status, out, err = bench(capsys, "--candidates", "20", "--parts", "loop")
    assert (status, out) == (2, "")
    assert "have come to different ends" in err.splitlines()[-1]


BAD = {
    "too few": (["--candidates", "5"], "expected a whole number of at least 20"),
    "no worker": (["--workers", "0"], "expected a whole number of at least 1"),
    "unknown part": (["--parts", "keys,speed"], "no part 'speed', expected some of keys, ledger"),
    "no folder": (["--parts", "ledger", "--folder", "/nowhere"], "/nowhere: no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = BAD[case]
    status, out, err = bench(capsys, *words)
    assert (status, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1


def test_a_child_answers_or_says_why_not(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    directory = str(tmp_path / "run")
    document = {"what": "loop", "workers": 0, "candidates": 20, "seed": 0, "directory": directory}
    found = child.run("search.bench.overhead", document, lambda *words: said.append(words))
    assert found["marks"][-1]["done"] == 20
    assert {words[0] for words in said} == {"candidates"}
    with pytest.raises(SearchError, match="holds a run already"):
        child.run("search.bench.overhead", document, lambda *words: None)
    with pytest.raises(SearchError, match=r"search\.bench\.nothing ended with status 1"):
        child.run("search.bench.nothing", {}, lambda *words: None)


# -- targets


def _run(candidates: int, ms: float, growth: float = 100.0, seconds: float = 1.0) -> Run:
    marks = [Mark(0, 0.0, 0.0, 0, 0), Mark(candidates, 1.0, 1.0, 0, candidates)]
    made = vars(Run.of(candidates, _found(marks)))
    return Run(**{**made, "ms": ms, "steady_ms": ms, "growth": growth, "seconds": seconds})


def _met(found: Findings) -> list[bool | None]:
    return [target.met for target in search_summary.targets(found)]


def test_targets_say_whether_they_are_met() -> None:
    found = Findings(SearchRequest(), {})
    assert _met(found) == [None] * 5
    found.keys = {"proposals": {"a": {"rounds": [900, 1100, 1200]}, "b": {"rounds": [2000]}}}
    found.loops = {RAY: [_run(1000, 1.0), _run(100_000, 1.2)], INLINE: [_run(1000, 9.0)]}
    found.resumed = [_run(1000, 1.0, seconds=30.0), _run(100_000, 1.0, seconds=19.0)]
    assert _met(found) == [True] * 5
    found.keys["proposals"]["b"]["rounds"] = [999.0]
    found.loops[RAY] = [_run(1000, 1.5), _run(100_000, 2.1, growth=2048.0)]
    found.resumed = [_run(100_000, 1.0, seconds=20.0)]
    assert _met(found) == [False] * 5
    found.request = SearchRequest(workers=3)
    assert _met(found) == [False, None, None, None, False]


def test_small_runs_are_compared_with_calls() -> None:
    found = Findings(SearchRequest(), {"cpu": "c", "cores": 2, "python": "3"})
    found.loops = {kind: [_run(1000, 1.0), _run(100_000, 1.2)] for kind in (INLINE, RAY)}
    found.calls = Calls(1000, 0.1, 0.2, 0.5)
    lines = [line.split() for line in search_summary.text(found).splitlines()]
    assert ["search", "on", "Ray", "workers,", "1,000", "candidates"] in [
        line[:6] for line in lines
    ]
    row = next(line for line in lines if line[:4] == ["search", "on", "Ray", "workers,"])
    assert row[-3:] == ["1.000", "5.00", "2.00"]


def test_what_is_measured_by_default() -> None:
    assert SearchRequest() == SearchRequest(CANDIDATES, 2, 0, SEARCH_PARTS, None)
    assert CANDIDATES == (1_000, 10_000, 100_000)
