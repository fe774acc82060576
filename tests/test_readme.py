"""Every command and every line of Python in the README is carried out, as a newcomer would.

The one that starts a cluster is in `tests/search/test_cluster_join.py`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cellgraph as cg

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEY = cg.load("gru").key()[:12]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> list[list[str]]:
    """The commands of all shell blocks, split into words, without their comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def _environment(folder: Path) -> dict[str, str]:
    bin_ = str(Path(sys.executable).parent)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    # A mirror that is not there: nothing of a test may reach for the network.
    return {**os.environ, "PATH": path, "CELLSEARCH_MIRROR": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


def test_the_two_commands_come_first_and_run_in_ci() -> None:
    first = commands()[:2]
    assert first == [["make", "search"], ["make", "test"]]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    for words in first:
        assert " ".join(words) in ci


def test_every_command(folder: Path) -> None:
    ran = 0
    for template in commands():
        if template[0] == "make":  # see above
            continue
        assert template[0] == "cellsearch", template
        words = [word.replace("KEY", KEY) for word in template]
        done = subprocess.run(
            words, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False
        )
        if words[1:3] == ["data", "fetch"] and done.returncode:
            assert done.returncode == 2, done.stderr
            assert "127.0.0.1" in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
        else:
            assert done.returncode == 0, (words, done.stderr)
        ran += 1
    assert ran > 12
    assert (folder / "runs" / "tour" / "report.html").exists()


def test_python_blocks(folder: Path) -> None:
    for number, block in enumerate(blocks("python")):
        script = folder / f"readme_{number}.py"
        script.write_text(block, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env={**_environment(folder), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_what_it_points_to_exists() -> None:
    for name in re.findall(r"\]\(([A-Z]+\.md)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^\| `(\w+)` \|", README, flags=re.M):
        assert (ROOT / "configs" / f"{name}.yaml").exists(), name
