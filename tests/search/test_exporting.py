"""`cellsearch export --weights` and `cellsearch sample`: trained models of a run, taken home."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluators import saved
from search import cli, trained
from search.journal import Journal

TINY = str(Path(__file__).parent / "tiny.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["--set", "search.candidates=1", "--set", "search.threshold=0"]
    assert cli.main(["launch", TINY, "--run", str(directory), "--workers", "0", *words]) == 0
    return directory


@pytest.fixture(scope="module")
def gru(run: Path) -> str:
    with Journal.read(run) as journal:
        (key,) = (row.key for row in journal.candidates() if row.name == "gru")
    return f"{run}:{key[:10]}"


def test_a_model_is_the_one_of_the_run(
    gru: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.py"
    words = ["export", gru, "--weights", "best", "--task", "language", "--format", "torch"]
    assert cli.main([*words, "--out", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("gru ff3346bb, trained on pydoc_char with adam,")
    assert told[0].endswith("on validation data, as in the run")
    beside = [str(tmp_path / "found.safetensors"), str(out), str(tmp_path / "found.py.md")]
    assert told[1:4] == beside
    assert told[4].startswith("checked against the interpreter: largest difference ")
    assert sorted(map(str, tmp_path.iterdir())) == sorted(beside)
    card = (tmp_path / "found.py.md").read_text(encoding="utf-8")
    assert "Those of the best training on language, in found.safetensors." in card

    model = saved.load(tmp_path / "found.safetensors")
    found = trained.best(run, gru.rpartition(":")[2], "pydoc_char")
    assert model.about.metrics["accuracy"] == found.value
    assert model.about.origin["key"] == found.key
    tokens = torch.arange(12).view(6, 2)
    with torch.no_grad():
        y, _ = model.model.outputs(tokens, None)
        torch.save((tokens, model.model.head(y)), tmp_path / "wanted.pt")
    code = (
        "import sys, torch; sys.path.insert(0, '.'); import found\n"
        "x, wanted = torch.load('wanted.pt')\n"
        "y, state = found.load('found.safetensors')(x)\n"
        "torch.testing.assert_close(y, wanted)\n"
        "assert not {'cellgraph', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)

    assert cli.main([*words, "--out", str(out)]) == 2  # nothing is overwritten, or trained
    assert "found.safetensors exists, expected a new path (or --force)" in capsys.readouterr().err

    weights = str(tmp_path / "found.safetensors")
    words = ["sample", weights, "--length", "30", "--prompt", "The ", "--seed", "1"]
    assert cli.main([*words, "--task", "language"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("The ")
    assert len(text) == 35
    assert cli.main([*words, "--out", str(tmp_path / "a.txt")]) == 0
    assert (tmp_path / "a.txt").read_text() + "\n" == text
    assert cli.main([*words, "--task", "music"]) == 2
    assert "was trained on pydoc_char, expected a model of music" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gru", "--weights", "best"], "gru is a cell without a training, expected RUN:KEY"),
        (["RUN", "--task", "language"], "expected --weights best beside it"),
        (["RUN", "--weights", "best"], "has several such tasks, expected one of: arithmetic"),
        (["RUN", "--weights", "best", "--task", "music"], "has no task 'music', expected one of"),
        (["RUN", "--weights", "best", "--hidden-size", "3"], "expected none beside --weights"),
        (["RUN", "--weights", "best", "--format", "pth"], "no export format 'pth'"),
    ],
)
def test_what_makes_no_sense(
    words: list[str],
    message: str,
    gru: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [gru if word == "RUN" else word for word in words]
    given += [] if "--format" in given else ["--format", "cell"]
    assert cli.main(["export", *given, "--out", str(tmp_path / "a.cell")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("")
    for name, message in {
        "a.py": "is no file of weights, expected one in .safetensors",
        "b.safetensors": "is not there",
    }.items():
        assert cli.main(["sample", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
