"""Locks and scratch folders: released by the kernel, swept up by the next process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from search.errors import SearchError
from search.storage import lock, scratch


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_lock_is_exclusive_and_says_who_holds_it(tmp_path: Path):
    with (
        lock(tmp_path / "lock", "the run"),
        pytest.raises(SearchError, match=f"^the run: is being written by process {os.getpid()} on"),
        lock(tmp_path / "lock", "the run"),
    ):
        pytest.fail("two holders")
    with lock(tmp_path / "lock", "the run"):
        pass


def test_a_scratch_folder_is_deleted(temporary: Path):
    with scratch("x-", longest=1000) as folder:
        assert folder.parent == temporary
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("text")
    assert list(temporary.iterdir()) == []


def test_leftovers_of_killed_processes_are_swept_up(temporary: Path):
    for name in ("x-killed", "x-young", "y-other"):
        (temporary / name).mkdir()
        (temporary / name / "file").write_text("text")
    long_ago = 1_000_000_000
    os.utime(temporary / "x-killed", (long_ago, long_ago))
    with scratch("x-", longest=1000) as first:
        os.utime(first, (long_ago, long_ago))
        with scratch("x-", longest=1000) as second:
            assert set(temporary.iterdir()) == {
                first,  # as old, but in use
                second,
                temporary / "x-young",  # perhaps not locked yet
                temporary / "y-other",
            }


def test_a_long_temporary_directory_is_passed_over(temporary: Path):
    assert len(str(temporary)) > 20
    with scratch("x-", longest=20) as folder:
        assert folder.parent == Path("/tmp")
        assert len(str(folder)) <= 20
    with pytest.raises(SearchError, match="has a path that is too long"), scratch("x-", 10):
        pytest.fail("made somewhere")
