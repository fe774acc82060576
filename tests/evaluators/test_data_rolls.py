"""Piano rolls from .mat files and pickles, and what must not get in that way."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from evaluators import data, tasks
from evaluators.data import rolls
from evaluators.errors import DataError

NOTES: dict[str, list[list[tuple[int, ...]]]] = {
    "train": [[(60, 64, 67), (), (21,)], [(60,), (108, 21)]],
    "valid": [[(60,), (62,)]],
    "test": [[(72,), (74,), (76,), ()]],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CELLSEARCH_DATA", str(tmp_path))
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "polyphonic").mkdir()
    data.forget()
    yield tmp_path / "polyphonic"
    data.forget()


def roll(frames: list[tuple[int, ...]]) -> np.ndarray:
    table = np.zeros((len(frames), 88))
    for index, notes in enumerate(frames):
        table[index, [note - 21 for note in notes]] = 1
    return table


def cells(pieces: list[Any]) -> np.ndarray:
    row = np.empty((1, len(pieces)), object)
    for index, piece in enumerate(pieces):
        row[0, index] = piece
    return row


def write_mat(path: Path, **changed: Any) -> None:
    content = {
        f"{split}data": cells([roll(piece) for piece in pieces]) for split, pieces in NOTES.items()
    }
    scipy.io.savemat(path, {**content, **changed})


def check(arrays: dict[str, np.ndarray]) -> None:
    for split, pieces in NOTES.items():
        assert arrays[split].dtype == np.uint8
        assert (arrays[split] == np.concatenate([roll(piece) for piece in pieces])).all()
        assert arrays[f"{split}_lengths"].tolist() == [len(piece) for piece in pieces]


def test_mat_files(folder: Path) -> None:
    write_mat(folder / "Nottingham.mat")
    check(data.load("nottingham"))
    assert data.source("nottingham")[0].startswith("Nottingham.mat sha256:")
    batch = next(iter(tasks.create("nottingham").eval_batches("test")))
    assert batch.targets[:, 0].nonzero()[:, 1].tolist() == [74 - 21, 76 - 21]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", [list, tuple])
def test_pickles_of_lists_of_notes(folder: Path, protocol: int, container: type) -> None:
    content = {
        split: container([container(map(container, piece)) for piece in pieces])
        for split, pieces in NOTES.items()
    }
    (folder / "Piano-midi.de.pickle").write_bytes(pickle.dumps(content, protocol))
    check(data.load("piano_midi"))


def test_pickles_of_python_2(folder: Path) -> None:
    """Its strings are bytes, and its text protocol writes long integers."""
    raw = b"(dp0\n"
    for split in ("train", "valid", "test"):
        raw += b"S'" + split.encode() + b"'\n(lp1\n(lp2\n(lp3\nL60L\naa(lp4\nI64\naaas"
    (folder / "JSB Chorales.pickle").write_bytes(raw + b".")
    arrays = data.load("jsb")
    assert arrays["valid"].nonzero()[1].tolist() == [39, 43]


def test_the_mat_file_is_preferred(folder: Path) -> None:
    write_mat(folder / "Nottingham.mat")
    (folder / "Nottingham.pickle").write_bytes(b"not even a pickle")
    check(data.load("nottingham"))


# --- refused -----------------------------------------------------------------------------------


class Runs:
    """Pickles as a call of `os.system`: what a malicious file would hold."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_and_does_not_run(
    folder: Path, protocol: int
) -> None:
    marker = folder / "it ran"
    content = {**NOTES, "valid": [[Runs(f"touch '{marker}'")]]}
    (folder / "Nottingham.pickle").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=r"refused.*system, which piano rolls do not need"):
        data.load("nottingham")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        {**NOTES, "test": {60, 62}},  # a harmless class is a class all the same
        {**NOTES, "test": np.zeros(3)},
        {**NOTES, "test": [[[np.int64(60)], [np.int64(62)]]]},
        getattr,
        Path("x"),
    ],
)
def test_every_global_is_refused(folder: Path, content: Any) -> None:
    raw = pickle.dumps(content, 2)
    assert any(op.name in ("GLOBAL", "STACK_GLOBAL") for op, _, _ in pickletools.genops(raw))
    (folder / "Nottingham.pickle").write_bytes(raw)
    with pytest.raises(DataError, match="which piano rolls do not need"):
        data.load("nottingham")


def test_a_few_bytes_that_unfold_to_a_billion_frames_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle may name the same list again and again."""
    monkeypatch.setattr(rolls, "MOST_FRAMES", 5000)
    piece = [[60]] * 1000
    raw = pickle.dumps({**NOTES, "train": [piece] * 1_000}, 2)
    assert len(raw) < 10_000
    (folder / "Nottingham.pickle").write_bytes(raw)
    with pytest.raises(DataError, match="more than 5000 frames"):
        data.load("nottingham")


def test_a_note_that_would_never_end_printing_is_refused(folder: Path) -> None:
    note: list[Any] = []
    for _ in range(60):
        note = [note, note]
    raw = pickle.dumps({**NOTES, "valid": [[(60,), (note,)]]}, 2)
    assert len(raw) < 1000
    (folder / "Nottingham.pickle").write_bytes(raw)
    with pytest.raises(DataError, match="valid 0, frame 1: list is not a MIDI number"):
        data.load("nottingham")


@pytest.mark.parametrize(
    "raw",
    [
        b"]r" + (1 << 27).to_bytes(4, "little") + b".",
        b"]q\xff.",
        b"]p134217728\n.",
    ],
)
def test_a_pickle_that_numbers_more_objects_than_it_holds_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    def unpickle(*args: object, **kwargs: object) -> None:
        pytest.fail("the table of remembered objects was about to be made")

    monkeypatch.setattr(rolls, "_PlainData", unpickle)
    (folder / "Nottingham.pickle").write_bytes(raw)
    with pytest.raises(DataError, match="numbers more objects than it can hold"):
        data.load("nottingham")


def test_the_reason_for_a_refusal_does_not_quote_the_file(folder: Path) -> None:
    name = "a\n" * 100_000
    raw = b"\x80\x04X" + len(name).to_bytes(4, "little") + name.encode() + b"\x8c\x01b\x93."
    for hostile in (raw, b"S" + b"x" * 200_000 + b"\n."):
        (folder / "Nottingham.pickle").write_bytes(hostile)
        with pytest.raises(DataError, match="refused as a pickle of plain lists") as raised:
            data.load("nottingham")
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 1000


def test_a_mat_file_that_unfolds_to_too_many_frames_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all splits, though no piece and no split has too many."""
    monkeypatch.setattr(rolls, "MOST_FRAMES", 5000)
    splits = {f"{split}data": cells([np.zeros((900, 88), np.uint8)] * 2) for split in NOTES}
    scipy.io.savemat(folder / "Nottingham.mat", splits, do_compression=True)
    assert (folder / "Nottingham.mat").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"Nottingham\.mat: more than 5000 frames"):
        data.load("nottingham")
    monkeypatch.setattr(rolls, "MOST_FRAMES", 5400)
    assert len(data.load("nottingham")["train"]) == 1800


@pytest.mark.parametrize("name", ["Nottingham.mat", "Nottingham.pickle"])
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str) -> None:
    # A regular file, says the system, and refuses to read it from its beginning.
    (folder / name).symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=f"{name}: cannot be read") as raised:
        data.load("nottingham")
    assert "\n" not in str(raised.value)
    (folder / name).unlink()
    (folder / name).symlink_to(folder)
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        rolls.read(folder / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict with the keys train, valid, test"),
        ({"train": NOTES["train"]}, "expected a dict with the keys"),
        ({**NOTES, "valid": 3}, "valid: expected a list, found int"),
        ({**NOTES, "valid": []}, "valid holds no piece"),
        ({**NOTES, "valid": [[(60,)]]}, "valid 0: 1 frames; two are needed"),
        ({**NOTES, "valid": [[60, 62]]}, "valid 0, frame 0: expected a list of MIDI numbers"),
        ({**NOTES, "valid": [[(60,), (20,)]]}, r"frame 1: note 20 is not on a piano \(21-108\)"),
        ({**NOTES, "valid": [[(60,), (109,)]]}, "frame 1: note 109 is not on a piano"),
        ({**NOTES, "valid": [[(60,), (60.5,)]]}, "frame 1: float is not a MIDI number"),
        ({**NOTES, "valid": [[(60,), (True,)]]}, "frame 1: bool is not a MIDI number"),
        (
            {**NOTES, "valid": [[(60,), (10**5000,)]]},
            r"frame 1: note of 16610 bits is not on a piano \(21-108\)",
        ),
        ({**NOTES, "valid": [[(60,), (60,) * 89]]}, "frame 1: expected a list of MIDI numbers"),
    ],
)
def test_pickles_that_are_no_rolls_are_refused(folder: Path, content: Any, message: str) -> None:
    (folder / "Nottingham.pickle").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=message) as raised:
        data.load("nottingham")
    assert str(folder / "Nottingham.pickle") in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validdata": np.zeros((3, 88))}, "expected a cell array 'validdata'"),
        ({"validdata": cells([np.zeros((3, 87))])}, r"validdata 0: expected \(frames, 88\)"),
        ({"validdata": cells([np.zeros((1, 88))])}, "validdata 0: 1 frames; two are needed"),
        ({"validdata": cells([np.full((3, 88), 0.5)])}, "holds only 0 and 1"),
        ({"validdata": cells([np.full((3, 88), np.nan)])}, "holds only 0 and 1"),
        ({"validdata": cells(["ab"])}, "validdata 0: expected"),
    ],
)
def test_mat_files_that_hold_no_rolls_are_refused(
    folder: Path, changed: dict[str, Any], message: str
) -> None:
    write_mat(folder / "Nottingham.mat", **changed)
    with pytest.raises(DataError, match=message):
        data.load("nottingham")


@pytest.mark.parametrize("name", ["Nottingham.mat", "Nottingham.pickle"])
def test_damaged_files_are_refused_wherever_they_are_cut(folder: Path, name: str) -> None:
    whole = io.BytesIO()
    if name.endswith(".mat"):
        write_mat(folder / "whole.mat")
        whole.write((folder / "whole.mat").read_bytes())
    else:
        whole.write(pickle.dumps(NOTES, 2))
    raw = whole.getvalue()
    for length in range(0, len(raw) - 1, max(1, len(raw) // 40)):
        (folder / name).write_bytes(raw[:length])
        with pytest.raises(DataError, match=name):
            data.load("nottingham")
