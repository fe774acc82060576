"""What `cellsearch doctor` says of the compiler and of where its libraries are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellgraph.kernels import compiler
from search import doctor


def test_the_compiler_is_named_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    script = tmp_path / "mycc"
    script.write_text(f'#!/bin/sh\necho run >>{log}\nexec {os.environ.get("CC", "cc")} "$@"\n')
    script.chmod(0o700)
    monkeypatch.setenv("CC", f"{script} -DX")
    for count in (1, 2):  # an older library proves nothing
        (finding,) = doctor._compiler()
        assert finding.state == "ok"
        assert finding.detail.startswith(f"{script} -DX builds a library in ")
        assert log.read_text() == "run\n" * count


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'error: no licence' >&2; exit 1", "exit status 1: error: no licence"),
        (": >library.so", "file too short"),
    ],
)
def test_a_compiler_that_does_not_work(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mycc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setenv("CC", str(path))
    (finding,) = doctor._compiler()
    assert finding.state == "missing"
    assert finding.detail.endswith(f"{why}; {compiler.how_to_get_one()}")


def test_where_compiled_cells_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path))
    (finding,) = doctor._cache()
    assert (finding.state, finding.detail) == ("ok", f"are kept in {tmp_path}/kernels")
    (tmp_path / "kernels").chmod(0o777)
    (finding,) = doctor._cache()
    assert finding.state == "note"
    assert finding.detail == (
        f"are built again by every process: {tmp_path}/kernels can be written by others"
    )
