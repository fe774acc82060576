"""`cellsearch confirm`: tables, refusals, and a confirmation that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import cellgraph as cg
from reports import collect, measured
from search import cli
from search.confirmation import FOLDER
from search.confirmation.plan import BASELINES
from search.journal import Journal, ResultRow

TINY = str(Path(__file__).parent / "tiny.yaml")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of tiny.yaml."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    few = ["search.candidates=5", "search.pool=5", "tasks.0.options.test_size=1400"]
    words = [word for text in (*few, "tasks.1.options.test_limit=1000") for word in ("--set", text)]
    assert cli.main(["launch", TINY, "--run", str(directory), "--workers", "0", *words]) == 0
    return directory


WORDS = ["--top", "2", "--random", "2", "--settings", "2", "--seeds", "2", "--workers", "0"]


@pytest.fixture(scope="module")
def done(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, confirmed."""
    directory = Path(shutil.copytree(searched, tmp_path_factory.mktemp("done") / "run"))
    assert cli.main(["confirm", str(directory), *WORDS]) == 0
    return directory


@pytest.fixture
def begun(done: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(done, tmp_path / "run"))


def comparable(directory: Path) -> dict[str, Any]:
    document = measured.read(directory)
    return {name: document[name] for name in document if name not in ("run", "created")}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    try:
        status = cli.main(list(words))
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    err = capsys.readouterr().err
    assert status == 2
    assert err.count("\n") == 1, err
    return str(err)


def test_the_table_of_a_run(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["confirm", str(done), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert not err  # nothing was left to train
    assert f"report: {done / 'report.html'}" in out
    assert "What can be claimed" in out
    for name in (*BASELINES, "found 1", "random"):
        assert name in out
    assert "<h2>Confirmation</h2>" in (done / "report.html").read_text()
    found = collect.read(done).leaderboard
    best = list(found[found["origin"] != "seed"]["key"])[:2]
    document = measured.read(done)
    for task in document["tasks"]:
        ranked = sorted((c["rank"], c["key"]) for c in task["cells"] if c["role"] == "found")
        assert [key for _, key in ranked] == best[: len(ranked)]
        for cell in task["cells"]:
            assert cell["failed"] or cell["parameters"] <= task["parameters"]
    assert {status for t in document["tasks"] for c in t["cells"] for status in c["statuses"]} <= {
        "ok", "diverged", "untrainable",
    }  # fmt: skip


def test_one_json_document(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["confirm", str(done), "--json", "--workers", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "finished"
    assert document["options"]["seeds"] == 2
    keys = [claim["key"] for claim in document["claims"]]
    assert len(keys) == len(frozenset(keys))
    assert cg.load("mut3").key() in keys


def test_nothing_is_chosen_by_test_data_or_scores_of_the_search(done: Path) -> None:
    with Journal.read(done / FOLDER) as journal:
        units = {unit.id: unit for unit in journal.units()}
        for row in journal.results():
            assert ("test" in row.records[0]) <= (units[row.unit].payload["phase"] == "measure")
        assert all(row.detail.keys() == {"rank", "random"} for row in journal.candidates())


def test_other_options_are_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(begun)
    line = refusal(capsys, "confirm", run, "--seeds", "3")
    assert f"{begun / FOLDER}: began with --seeds 2, not 3" in line
    assert "began with --alpha 0.05" in refusal(capsys, "confirm", run, "--alpha", "0.1")
    line = refusal(capsys, "confirm", run, "--tasks", "arithmetic")
    assert "began with --tasks arithmetic,pydoc_char, not arithmetic" in line
    same = [*WORDS, "--tasks", "pydoc_char,arithmetic", "--steps-scale", "1"]
    assert cli.main(["confirm", run, *same]) == 0


def test_other_data_are_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(begun / FOLDER / "journal.sqlite") as database:
        (text,) = database.execute("SELECT value FROM meta WHERE key = 'data'").fetchone()
        data = json.loads(text)
        data["pydoc_char"]["data"]["sha256"] = "0" * 64
        update = "UPDATE meta SET value = ? WHERE key = 'data'"
        database.execute(update, (json.dumps(data),))
    database.close()
    line = refusal(capsys, "confirm", str(begun), "--workers", "0")
    assert "the data of task pydoc_char are not those it began with" in line


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE results SET records = '[5]'",
        "UPDATE results SET records = '[]'",
        "UPDATE meta SET value = '{}' WHERE key = 'confirmation'",
        "UPDATE meta SET value = '[5]' WHERE key = 'entrants'",
        "UPDATE units SET payload = '{}' WHERE id = 0",
    ],
)
def test_rows_that_nobody_wrote(
    statement: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(begun / FOLDER / "journal.sqlite") as database:
        database.executescript(statement)
    database.close()
    status = cli.main(["confirm", str(begun), "--workers", "0"])
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert lines[-1].startswith("cellsearch: ")
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "nowhere: no such run directory"),
        (["EMPTY"], "is not a run directory (it has no journal.sqlite)"),
        (["RUN", "--top", "0"], "expected a whole number of at least 1"),
        (["RUN", "--seeds", "1"], "expected a whole number of at least 2"),
        (["RUN", "--settings", "0"], "expected a whole number of at least 1"),
        (["RUN", "--steps-scale", "0"], "expected a number above 0"),
        (["RUN", "--steps-scale", "nan"], "expected a number above 0"),
        (["RUN", "--alpha", "1"], "expected a number above 0 and below 1"),
        (["RUN", "--tasks", "arithmetik"], "no task 'arithmetik', expected some of arithmetic, py"),
        (["RUN", "--tasks", "memorisation"], "no task 'memorisation'"),
    ],
)
def test_bad_input(
    words: list[str],
    expected: str,
    searched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": str(searched), "EMPTY": str(tmp_path)}
    words = [places.get(word, word) for word in words]
    assert expected in refusal(capsys, "confirm", *words, "--workers", "0")
    assert not (searched / FOLDER).exists()


def test_killed_and_carried_on_by_other_workers(searched: Path, done: Path, tmp_path: Path) -> None:
    """Killed in the middle, resumed on Ray: the table is that of one process left in peace."""
    directory = Path(shutil.copytree(searched, tmp_path / "run"))
    words = [sys.executable, "-m", "search.cli", "confirm", str(directory)]
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen([*words, *WORDS], cwd=ROOT, **nowhere)  # type: ignore[call-overload]
    before: list[ResultRow] = []
    deadline = time.monotonic() + 300
    while len(before) < 20:
        assert driver.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, f"{len(before)} results after five minutes"
        time.sleep(0.02)
        if (directory / FOLDER / "journal.sqlite").exists():
            with Journal.read(directory / FOLDER) as journal:
                before = journal.results()
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert measured.read(directory)["state"] == "unfinished"
    subprocess.run([*words, "--workers", "1"], cwd=ROOT, check=True, timeout=300, **nowhere)
    with Journal.read(directory / FOLDER) as journal:
        after = {row.unit: row for row in journal.results()}
        kinds = [event.kind for event in journal.events() if not event.kind.startswith("worker")]
    assert [after[row.unit] for row in before] == before
    assert any(row.worker != "driver" for row in after.values())
    assert kinds == ["started", "started", "finished"]
    assert comparable(directory) == comparable(done)
