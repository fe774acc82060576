"""The two Parquet files: every number is that of the journal, whoever reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import cellgraph as cg
from reports import collect, parquet
from reports.collect import Run
from search import cli
from search.errors import SearchError
from search.journal import Journal
from tests.reports import journals
from tests.reports.journals import KEYS
from tests.reports.test_reports_rejected import write_rejected


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return collect.read(journals.write(tmp_path_factory.mktemp("parquet") / "small"))


@pytest.fixture(scope="module")
def files(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    paths = parquet.write(run)
    assert paths == [run.directory / "candidates.parquet", run.directory / "curves.parquet"]
    candidates, curves = (pd.read_parquet(path) for path in paths)
    return candidates, curves


def test_a_row_per_candidate(run: Run, files: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = files[0]
    assert list(found["candidate"]) == list(range(9))
    assert list(found["key"]) == [row.key for row in journals.CANDIDATES]
    assert [list(parents) for parents in found["parents"]] == [
        list(row.parents) for row in journals.CANDIDATES
    ]
    assert all(cg.parse(text).key() == key for text, key in found[["cell", "key"]].to_numpy())
    assert list(found["outcome"]) == [
        "seed", "seed", "rejected at memorisation", "rejected at ptb_char", "evaluated",
        "rejected at jsb", "rejected at memorisation", "running", "running",
    ]  # fmt: skip
    assert list(found["furthest"][:3]) == ["jsb", "jsb", "memorisation"]
    assert list(found["units"]) == [2, 2, 1, 2, 4, 3, 1, 2, 1]
    assert list(found["trainings"]) == [4, 4, 1, 3, 7, 5, 1, 1, 0]
    assert list(found["failed"]) == [0, 1, 0, 0, 2, 0, 1, 0, 0]
    assert list(found["steps"][:2]) == [400, 360]
    assert list(found["seconds"]) == [20.0, 20.0, 5.0, 15.0, 35.0, 25.0, 1.0, 5.0, 0.0]
    assert list(found["pooled"]) == [i in (0, 1, 4) for i in range(9)]


def test_results_are_those_of_the_cell(files: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = files[0].set_index("candidate")
    assert found.loc[4, "best.ptb_char"] == 0.572
    assert found.loc[4, "ratio.ptb_char"] == 0.572 / 0.52
    assert found.loc[4, "score"] == found.loc[4, "ratio.jsb"] == 8.0 / 7.5
    assert found.loc[4, "customary.ptb_char"] == pytest.approx((1 - 0.572) / 0.6931471805599453)
    assert (found.loc[4, "parameters.jsb"], found.loc[4, "hidden_size.jsb"]) == (1987, 17)
    assert found.loc[4, "tried.ptb_char"] == 4
    # Two candidates, one cell.
    assert found.loc[2, "best.memorisation"] == found.loc[7, "best.memorisation"] == 0.96
    assert pd.isna(found.loc[3, "score"])
    assert pd.isna(found.loc[8, "best.memorisation"])
    assert "ratio.memorisation" not in found


def test_a_row_per_point_of_every_curve(run: Run, files: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = files[1]
    assert len(found) == 25 * 2  # one unit was lost
    with Journal.read(run.directory) as journal:
        points = [
            (result.unit, index, record["status"], *point)
            for result in journal.results()
            for index, record in enumerate(result.records)
            for point in record.get("curve", [])
        ]
    names = ["unit", "index", "status", "step", "train_loss", "valid_loss", "valid_metric"]
    expected = pd.DataFrame(points, columns=names)
    pd.testing.assert_frame_equal(found[names], expected, check_dtype=False, check_exact=True)
    assert json.loads(found["setting"][0]) == journals.setting(0)
    assert list(found["stage"][:2]) == ["ptb_char", "ptb_char"]
    assert set(found["purpose"]) == {"seed", "candidate", "re-evaluation"}
    diverged = found[found["status"] == "diverged"]
    assert len(diverged) == 6
    assert diverged["valid_loss"].isna().sum() == 3


def test_every_column_says_what_it_is(run: Run, files: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    for name, frame in zip(("candidates", "curves"), files, strict=True):
        schema = pq.read_schema(run.directory / f"{name}.parquet")
        assert schema.names == list(frame.columns)
        assert all(field.metadata[b"meaning"] for field in schema)
        assert all(b"unit" in field.metadata for field in schema)
        assert schema.metadata[b"cellsearch.schema_version"] == b"1"
        metrics = json.loads(schema.metadata[b"cellsearch.metrics"])
        assert metrics == {"memorisation": "accuracy", "ptb_char": "accuracy", "jsb": "nll"}
    schema = pq.read_schema(run.directory / "candidates.parquet")
    assert schema.field("customary.ptb_char").metadata[b"unit"] == b"bits_per_character"
    assert schema.field("best.jsb").metadata[b"meaning"].startswith(b"best nll of its cell")
    assert not schema.field("key").nullable
    assert schema.field("score").nullable
    assert [c.name for c in parquet.candidate_columns(run)] == schema.names
    assert not any("STAGE" in name for name in schema.names)


def test_files_come_in_pieces(
    run: Run,
    files: tuple[pd.DataFrame, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet, "CANDIDATES_IN_A_PIECE", 4)
    monkeypatch.setattr(parquet, "POINTS_IN_A_PIECE", 15)
    paths = parquet.write(run, tmp_path / "a" / "b")
    assert [pq.ParquetFile(path).num_row_groups for path in paths] == [3, 4]
    for path, whole in zip(paths, files, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(path), whole)


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    empty = collect.read(journals.launched(tmp_path / "empty"))
    for path in parquet.write(empty):
        assert pq.read_table(path).num_rows == 0
        assert len(pq.read_schema(path)) > 8


def test_rejected_settings(tmp_path: Path) -> None:
    paths = parquet.write(collect.read(write_rejected(tmp_path / "r")))
    candidates, curves = (pd.read_parquet(path) for path in paths)
    assert list(candidates["rejected"]) == [0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert list(candidates["failed"]) == [0, 1, 0, 0, 2, 0, 1, 0, 0]
    assert list(candidates["trainings"][:4]) == [4, 4, 0, 3]
    assert candidates["outcome"][2] == "rejected at screen"
    assert list(curves[curves["status"] == "rejected"]["step"]) == [50]


def test_what_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SearchError, match="cannot be made"):
        parquet.write(run, tmp_path / "file")
    taken = tmp_path / "folder"
    (taken / "curves.parquet").mkdir(parents=True)
    with pytest.raises(SearchError, match=r"curves\.parquet: cannot be written"):
        parquet.write(run, taken)
    assert sorted(path.name for path in taken.iterdir()) == ["candidates.parquet", "curves.parquet"]


def test_an_older_file_stays_when_a_new_one_fails(tmp_path: Path) -> None:
    units, results = journals.rows()
    directory = journals.write(tmp_path / "r", units=units, results=results)
    parquet.write(collect.read(directory))
    before = {path.name: path.read_bytes() for path in directory.glob("*.parquet")}
    wrong = {**results[0].records[0], "curve": [[50, 1.0, 2.0]]}
    for record, message in (
        (wrong, "unit 0 has a curve with 3 numbers in a row, expected step, train_loss"),
        ({**wrong, "curve": [["fifty", 1.0, 2.0, 0.5]]}, r"curves\.parquet: cannot hold what"),
    ):
        changed = dataclasses.replace(results[0], records=(record, results[0].records[1]))
        other = journals.write(
            tmp_path / str(record["curve"][0][0]), units=units, results=[changed, *results[1:]]
        )
        with pytest.raises(SearchError, match=message) as caught:
            parquet.write(collect.read(other), directory)
        assert "\n" not in str(caught.value)
        assert (directory / "curves.parquet").read_bytes() == before["curves.parquet"]
        assert not list(directory.glob(".*"))


def test_the_same_journal_gives_the_same_files(run: Run, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in parquet.write(run, tmp_path / "a")]
    second = [
        path.read_bytes() for path in parquet.write(collect.read(run.directory), tmp_path / "b")
    ]
    assert first == second


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = journals.write(tmp_path / "run")
    assert cli.main(["report", str(directory), "--parquet"]) == 0
    expected = [str(directory / f"{name}.parquet") for name in ("candidates", "curves")]
    assert capsys.readouterr().out.splitlines() == expected
    assert not (directory / "report.html").exists()
    words = ["report", str(directory), "--parquet", str(tmp_path / "data")]
    assert cli.main([*words, "--out", str(tmp_path / "page.html")]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "candidates.parquet", "curves.parquet", "page.html",
    ]  # fmt: skip
    assert len(pd.read_parquet(tmp_path / "data" / "candidates.parquet")) == 9
    assert KEYS["good"] in set(pd.read_parquet(tmp_path / "data" / "candidates.parquet")["key"])
