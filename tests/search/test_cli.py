"""The command line as a user meets it: a small run, a look at everything, and bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

import cellgraph as cg
from cellgraph.kernels import compiler
from reports import collect
from search import cli, doctor, launch

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of tiny.yaml in this process."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert cli.main(["launch", TINY, "--run", str(directory), "--workers", "0"]) == 0
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    try:
        status = cli.main(list(words))
    except SystemExit as stop:  # argparse
        status = int(stop.code or 0)
    _out, err = capsys.readouterr()
    assert status == 2
    assert err.count("\n") == 1, err
    assert err.startswith("cellsearch")
    return str(err)


def test_a_launch_leaves_a_run_directory(finished: Path) -> None:
    names = sorted(p.name for p in finished.iterdir())
    assert [n for n in names if not n.startswith("journal")] == ["config.yaml", "report.html"]
    text = (finished / "config.yaml").read_text()
    assert "torch" in text
    assert "pydoc_char sha256" in text
    run = collect.read(finished)
    assert run.state == "finished"
    assert {"gru", "lstm"} <= set(run.leaderboard["name"])


def test_the_resolved_configuration_launches_the_same_search(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    config = str(finished / "config.yaml")
    assert "report:" in answer(capsys, "launch", config, "--run", str(again), "--workers", "0")
    texts = [collect.leaderboard_text(collect.read(run)) for run in (finished, again)]
    assert texts[0] == texts[1]


def test_without_a_name_the_run_gets_the_next_free_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--set", "search.candidates=1", "--set", "search.seed_settings=1", "--workers", "0"]
    assert answer(capsys, "launch", TINY, *few).startswith("run runs/tiny:")
    assert answer(capsys, "launch", TINY, *few).startswith("run runs/tiny-2:")


def test_looking_at_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gru" in answer(capsys, "inspect", str(finished))
    assert "finished" in answer(capsys, "status", str(finished))
    assert "complete" in answer(capsys, "replay", str(finished))
    status = json.loads(answer(capsys, "status", str(finished), "--json"))
    assert status["state"] == "finished"
    assert 0 < status["busy"] < 1
    board = json.loads(answer(capsys, "inspect", str(finished), "--json"))
    key = cg.load("gru").key()
    assert key in json.dumps(board)
    page = answer(capsys, "inspect", f"{finished}:{key[:10]}")
    assert "h' = z * h + (1 - z) * g" in page
    cell = json.loads(answer(capsys, "inspect", f"{finished}:{key[:10]}", "--json"))
    assert cell["key"] == key


def test_every_cell_of_a_run_can_be_inspected_and_taken_home(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in collect.read(finished).cells["key"]:
        target = f"{finished}:{key}"
        assert key in answer(capsys, "inspect", target)
        for form, suffix in (("torch", "py"), ("cell", "cell")):
            out = tmp_path / f"{key}.{suffix}"
            told = answer(capsys, "export", target, "--format", form, "--out", str(out))
            assert told.startswith(f"{out}\n{out}.md\n")
        assert cg.load(out).key() == key


def test_resuming_a_finished_run_changes_nothing_and_starts_no_worker(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> NoReturn:
        raise AssertionError("a worker is started")

    monkeypatch.setattr(launch, "_executor", start)
    before, board = collect.read(run), collect.leaderboard_text(collect.read(run))
    assert "report:" in answer(capsys, "resume", str(run), "--workers", "2")
    assert collect.leaderboard_text(collect.read(run)) == board
    assert collect.read(run).events == before.events


def test_a_run_on_other_data_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(run / "journal.sqlite") as database:
        (text,) = database.execute("SELECT value FROM meta WHERE key = 'environment'").fetchone()
        environment = json.loads(text)
        environment["data"]["pydoc_char"]["data"]["sha256"] = "0" * 64
        database.execute(
            "UPDATE meta SET value = ? WHERE key = 'environment'", (json.dumps(environment),)
        )
    database.close()
    assert "data of task pydoc_char are not those" in complaint(capsys, "resume", str(run))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("environment", "[]"),
        ("environment", '{"data": 5}'),
        ("seeds", "5"),
        ("seeds", "[]"),
        ("seeds", '["cell", "nonsense"]'),
        ("config", "{"),
        ("config", '{"tasks": 5}'),
    ],
)
def test_a_journal_that_describes_no_run(
    key: str, value: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(run / "journal.sqlite") as database:
        database.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))
    database.close()
    complaint(capsys, "resume", str(run), "--workers", "0")
    complaint(capsys, "replay", str(run))


def test_a_run_killed_before_its_configuration_was_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "config.yaml").read_text()
    (run / "config.yaml").unlink()
    answer(capsys, "resume", str(run), "--workers", "0")
    assert (run / "config.yaml").read_text() == before


def test_the_report_can_go_elsewhere(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert answer(capsys, "report", str(finished), "--out", str(out)) == f"{out}\n"
    assert out.read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_report_replaces_nothing_but_pages(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = (run / "journal.sqlite").read_bytes()
    assert "is no page" in complaint(
        capsys, "report", str(run), "--out", str(run / "journal.sqlite")
    )
    assert (run / "journal.sqlite").read_bytes() == ledger


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE results SET records = 'nonsense'",
        "UPDATE results SET records = '5'",
        "UPDATE results SET records = '[5]'",
        "UPDATE units SET payload = '{}'",
        "UPDATE candidates SET parents = '5'",
        "DELETE FROM results; DELETE FROM units; DELETE FROM candidates WHERE id > 0",
    ],
)
def test_rows_that_nobody_wrote(
    statement: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(run / "journal.sqlite") as database:
        database.executescript(statement)
    database.close()
    for words in (["status"], ["inspect"], ["replay"], ["report"]):
        status = cli.main([*words, str(run)])
        err = capsys.readouterr().err
        assert (status, err.count("\n")) in ((0, 0), (2, 1)), (words, err)


@pytest.mark.parametrize("words", [["status"], ["inspect"], ["replay"], ["launch"]])
def test_a_path_that_is_too_long(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    complaint(capsys, *words, "a" * 5000)


def test_named_cells(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(answer(capsys, "zoo", "--json"))
    assert [row["name"] for row in rows] == cg.zoo.names()
    assert all(row["name"] in answer(capsys, "zoo") for row in rows[:3])
    assert "Jozefowicz" in answer(capsys, "inspect", "mut1")
    assert json.loads(answer(capsys, "inspect", "mut1", "--json"))["name"] == "mut1"


def test_the_zoo_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines, end = answer(capsys, "zoo").splitlines()
    assert head.split()[:4] == ["name", "year", "states", "matrices"]
    assert [line.split()[0] for line in lines] == cg.zoo.names()
    (gru,) = (line for line in lines if line.startswith("gru "))
    assert gru.split() == [
        *("gru", "2014", "h", "6", "24,768", "50,048", "nonlinear,", "matrix"),
        *cg.zoo.info("gru").title.split(),
    ]
    assert end.startswith(f"{len(lines)} cells")
    rows = {row["name"]: row for row in json.loads(answer(capsys, "zoo", "--json"))}
    facts = rows["cifg"]["structure"]
    assert facts["recurrent_matrices"] == facts["input_matrices"] == 3
    assert [gate["name"] for gate in facts["gates"]] == ["i", "o"]
    assert facts["couplings"][0]["equation"] == "i * g + f * c"
    assert facts["closest"]["distance"] > 0
    assert "lstm" in rows["np"]["structure"]["same_function"]


def test_cells_with_a_tag(capsys: pytest.CaptureFixture[str]) -> None:
    names = [line.split()[0] for line in answer(capsys, "zoo", "--tag", "torch").splitlines()]
    assert names[1:-1] == cg.zoo.tagged("torch")
    assert "no tag 'torhc' (did you mean torch?)" in complaint(capsys, "zoo", "--tag", "torhc")


def test_inspect_tells_the_structure_of_a_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = answer(capsys, "inspect", "gru").partition("Structure\n")[2].splitlines()
    assert page[0] == "recurrence: nonlinear, matrix"
    assert "gate r sees x, h" in page
    assert "coupled: z in h' = z * h + (1 - z) * g" in page
    assert re.fullmatch(r"closest named cell: \w+(, \w+)* \(\d+ edits?\)", page[-1])
    peephole = answer(capsys, "inspect", "lstm_peephole")
    assert "gate o sees x, h, c' (vector)\n" in peephole
    mine = tmp_path / "mine.cell"
    mine.write_text(
        "cell mine(x, h, c)\n    f = sigmoid(W @ x)\n    c' = f * c + (1 - f) * (V @ x)\n"
        "    h' = tanh(c')\n"
    )
    page = answer(capsys, "inspect", str(mine)).partition("Structure\n")[2].splitlines()
    assert page[0] == "recurrence: linear, elementwise (a parallel scan can replace the loop)"
    assert page[1] == "in this order: c linear, elementwise; h without recurrence"
    document = json.loads(answer(capsys, "inspect", "np", "--json"))["structure"]
    assert document["closest"]["distance"] == 0
    assert "lstm" in document["closest"]["names"]
    assert "lstm" in document["same_function"]


def test_a_run_keeps_the_names_behind_a_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed and replayed on the cells that it began with, whatever the tag means by then."""
    from search import work

    evaluate, left = work.Evaluator.__call__, [3]

    def interrupted(self: work.Evaluator, payload: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return evaluate(self, payload)

    monkeypatch.setattr(work.Evaluator, "__call__", interrupted)
    names = ["gru", "gru_reset_after", "lstm", "tanh_rnn"]
    monkeypatch.setattr(cg.zoo, "tagged", lambda tag: names[1:])
    run = tmp_path / "run"
    few = ["--set", "search.candidates=2", "--set", "search.seed_settings=1"]
    seeds = ["--set", "search.seeds=[gru, 'tag:torch']"]
    words = ["launch", TINY, "--run", str(run), "--workers", "0", *few, *seeds]
    assert cli.main(words) == 130
    capsys.readouterr()
    monkeypatch.undo()

    assert f"seeds:\n  - {names[0]}\n  - {names[1]}" in (run / "config.yaml").read_text()
    assert "tag:" not in (run / "config.yaml").read_text()
    monkeypatch.setattr(cg.zoo, "tagged", lambda tag: ["gru", "mut1"])
    assert "report:" in answer(capsys, "resume", str(run), "--workers", "0")
    assert "complete" in answer(capsys, "replay", str(run))
    found = collect.read(run)
    assert [found.first[key].name for key in found.seeds] == names
    again = tmp_path / "again"
    words = ["launch", str(run / "config.yaml"), "--run", str(again), "--workers", "0"]
    assert "report:" in answer(capsys, *words)
    texts = [collect.leaderboard_text(collect.read(r)) for r in (run, again)]
    assert texts[0] == texts[1]


def test_mutants_depend_on_the_seed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    first = answer(capsys, "mutate", "gru", "--seed", "1", "--count", "3")
    assert first == answer(capsys, "mutate", "gru", "--seed", "1", "--count", "3")
    assert first != answer(capsys, "mutate", "gru", "--seed", "2", "--count", "3")
    children = [cg.parse(text) for text in first.split("\n\n")]
    assert len({child.key() for child in children}) == 3
    assert answer(capsys, "mutate", "gru", "--seed", "1", "--edits", "1-1") != first


def test_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(answer(capsys, "data", "list", "--json"))["pydoc_char"]["available"]
    assert "chorales" in answer(capsys, "data", "list")
    assert "$CELLSEARCH_DATA" in answer(capsys, "data", "path")


def _broken_cell(folder: Path) -> list[str]:
    (folder / "bad.cell").write_text("cell bad(x, h)\n    h' = tanh(W @ x + U @ g')\n")
    return ["inspect", str(folder / "bad.cell")]


def _binary_cell(folder: Path) -> list[str]:
    (folder / "bad.cell").write_bytes(b"\xff\xfe\x00cell")
    return ["export", str(folder / "bad.cell"), "--format", "cell", "--out", str(folder / "o")]


def _config(text: str) -> Any:
    def words(folder: Path) -> list[str]:
        (folder / "c.yaml").write_text(text)
        return ["launch", str(folder / "c.yaml"), "--run", str(folder / "run"), "--workers", "0"]

    return words


STAGE = "{steps: 5, eval_every: 5, params: [4000], "
BAD = {
    "broken cell": (_broken_cell, "bad.cell: line 2: g is not a state, expected one of h"),
    "cell in binary": (_binary_cell, "is not text, expected notation in UTF-8"),
    "unknown cell": (["inspect", "gruu"], "no cell named 'gruu' (did you mean gru?)"),
    "no such cell file": (["inspect", "nowhere.cell"], "nowhere.cell cannot be read"),
    "no such run": (["status", "nowhere"], "nowhere: no such run directory"),
    "not a run": (["resume", "."], "is not a run directory"),
    "key of no run": (["inspect", "nowhere:abc"], "nowhere is not a run directory"),
    "unknown format": (
        ["export", "gru", "--format", "pth", "--out", "x"],
        "expected one of cell, torch",
    ),
    "no such folder": (["export", "gru", "--format", "cell", "--out", "no/x.cell"], "no/x.cell"),
    "unknown data": (["data", "fetch", "ptbb"], "ptb"),
    "unknown command": (["lunch"], "invalid choice: 'lunch'"),
    "no whole number": (["mutate", "gru", "--count", "-1"], "expected a whole number of at least"),
    "wrong edits": (["mutate", "gru", "--edits", "3-1"], "expected LOW-HIGH such as 1-3"),
    "no such config": (["launch", "nowhere.yaml"], "nowhere.yaml"),
    "unknown key": (
        _config("tasks: [{task: xml, stepz: 5, eval_every: 5, params: [4000]}]"),
        "did you mean 'steps'",
    ),
    "broken YAML": (_config("tasks: [{"), "c.yaml"),
    "unknown task": (_config(f"tasks: [{STAGE}task: arithmetik}}]"), "arithmetic"),
    "unknown option": (
        _config(f"tasks: [{STAGE}task: arithmetic, options: {{digit: 3}}}}]"),
        "digits",
    ),
    "unknown seed": (
        _config(f"search: {{seeds: [gru, lstmm]}}\ntasks: [{STAGE}task: xml}}]"),
        "did you mean lstm",
    ),
    "unknown tag": (
        _config(f"search: {{seeds: [gru, 'tag:gatd']}}\ntasks: [{STAGE}task: xml}}]"),
        "search.seeds: no tag 'gatd' (did you mean gated?), expected one of ",
    ),
    "the same seed twice": (
        _config(f"search: {{seeds: [gru, lstm, np]}}\ntasks: [{STAGE}task: xml}}]"),
        "is the same cell as another seed",
    ),
    "the same task twice": (
        _config(f"tasks: [{STAGE}task: xml}}, {STAGE}task: xml}}]"),
        "task xml stands 2 times",
    ),
    "unknown algorithm": (
        _config(f"search: {{algorithm: magic}}\ntasks: [{STAGE}task: xml}}]"),
        "expected one of jozefowicz",
    ),
    "unknown backend": (_config(f"backend: warp\ntasks: [{STAGE}task: xml}}]"), "no backend"),
    "missing data": (_config(f"tasks: [{STAGE}task: ptb_word}}]"), "cellsearch data fetch ptb"),
    "a budget too small for a cell": (
        _config(
            "search: {seed_settings: 1}\n"
            "tasks: [{task: xml, steps: 5, eval_every: 5, params: [10]}]"
        ),
        "baseline gru has no usable result on xml",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_line(
    case: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELLSEARCH_DATA", raising=False)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    words, expected = BAD[case]
    message = complaint(capsys, *(words(tmp_path) if callable(words) else words))
    assert expected in message
    if case != "a budget too small for a cell":
        assert not (tmp_path / "run").exists(), "a run was begun that cannot be carried out"


def test_an_existing_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "journal.sqlite").read_bytes()
    assert "holds a run already" in complaint(capsys, "launch", TINY, "--run", str(run))
    assert (run / "journal.sqlite").read_bytes() == before


def test_an_existing_file_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.cell"
    out.write_text("mine")
    words = ["export", "gru", "--format", "cell", "--out", str(out)]
    complaint(capsys, *words)
    assert out.read_text() == "mine"
    answer(capsys, *words, "--force")
    assert cg.load(out).key() == cg.load("gru").key()


@pytest.mark.skipif(compiler.command() is None, reason="there is no C compiler")
def test_a_c_file_says_what_it_takes_and_what_int8_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gru.c"
    words = [
        "export",
        "gru",
        "--out",
        str(out),
        "--int8",
        "--input-size",
        "3",
        "--no-card",
        "--format",
    ]
    assert "format torch has no option 'int8'" in complaint(capsys, *words, "torch")
    lines = answer(capsys, *words, "c", "--hidden-size", "4").splitlines()
    assert lines[0] == str(out)
    assert [line.split()[0] for line in lines[1:]] == ["checked", "code", "memory", "int8"]


def test_an_address_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["launch", TINY, "--run", str(run), "--address", "127.0.0.1:9"]
    assert "127.0.0.1:9" in complaint(capsys, *words)
    assert not run.exists()


def test_no_compiler_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor, "CHECKS", (doctor._python, doctor._compiler, doctor._disk))
    status = cli.main(["doctor"])
    out, err = capsys.readouterr()
    assert status == 2
    assert err == "cellsearch: this machine lacks: compiler\n"
    assert "no C compiler ($CC, cc, gcc, clang); install" in out


def test_doctor_tries_what_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    findings = {f.what: f for f in doctor.examine()}
    assert findings["torch"].state == findings["ray"].state == "ok"
    assert findings["data pydoc_char"].state == "ok"
    assert findings["compiler"].state == "ok", "the tests need a C compiler, as the README says"


@pytest.mark.parametrize(
    ("number", "times", "units"),
    [(signal.SIGINT, 1, 1), (signal.SIGINT, 2, 0), (signal.SIGTERM, 1, 0)],
)
def test_ctrl_c_and_a_polite_kill_say_how_to_go_on(
    number: signal.Signals,
    times: int,
    units: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from search import work

    handler = signal.getsignal(signal.SIGTERM)
    # Where the tests run in the background, a shell has told them to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    evaluate = work.Evaluator.__call__

    def interrupted(self: work.Evaluator, payload: Any) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.1)  # where the signal arrives
        return evaluate(self, payload)

    monkeypatch.setattr(work.Evaluator, "__call__", interrupted)
    run = tmp_path / "run"
    assert cli.main(["launch", TINY, "--run", str(run), "--workers", "0"]) == 130
    assert f"go on with: cellsearch resume {run}" in capsys.readouterr().err
    assert collect.read(run).state == "interrupted"
    assert collect.read(run).totals["units_done"] == units, "one Ctrl-C waits for what is under way"
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.undo()
    assert "report:" in answer(capsys, "resume", str(run), "--workers", "0")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m search.cli zoo --json | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
