"""The chorales: the grid, the split, and the cache."""

from __future__ import annotations

import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from evaluators import data, tasks
from evaluators.data import chorales
from evaluators.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("CELLSEARCH_DATA", raising=False)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    data.forget()
    yield tmp_path / "cache"
    data.forget()


@pytest.fixture(scope="module")
def whole() -> chorales.Arrays:
    """The whole corpus, which takes half a minute to read."""
    return chorales.build(chorales.scores())


@pytest.fixture(scope="module")
def built() -> tuple[list[Path], chorales.Arrays]:
    """A corpus of fourteen scores, enough for all three splits, and what becomes of it."""
    files = chorales.scores()[:14]
    return files, chorales.build(files)


@pytest.fixture
def few(
    built: tuple[list[Path], chorales.Arrays], monkeypatch: pytest.MonkeyPatch
) -> list[list[Path]]:
    """Has the small corpus take the place of the whole; the calls of `build` are listed here."""
    calls: list[list[Path]] = []

    def build(files: list[Path]) -> chorales.Arrays:
        calls.append(files)
        return built[1]

    monkeypatch.setattr(chorales, "scores", lambda: built[0])
    monkeypatch.setattr(chorales, "build", build)
    return calls


# --- the grid ----------------------------------------------------------------------------------


def note(pitch: str, duration: int, inside: str = "") -> str:
    """A note of MusicXML with four divisions to the quarter: "C4", "E-4", "F#4", or "" for a rest.

    inside: what comes before the pitch: <chord/> or <grace/>; a grace note has no duration.
    """
    step, octave = pitch[:1], pitch[-1:]
    alter = {"-": -1, "#": 1}.get(pitch[1:-1], 0)
    what = (
        f"<pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>"
        if pitch
        else "<rest/>"
    )
    length = "" if "grace" in inside else f"<duration>{duration}</duration>"
    return f"<note>{inside}{what}{length}<voice>1</voice></note>"


TIMES = "<divisions>4</divisions><time><beats>2</beats><beat-type>4</beat-type></time>"
CLARINET = "<transpose><diatonic>-1</diatonic><chromatic>-2</chromatic></transpose>"
# What music21 warns of; the tests, like a run under -W error, make errors of warnings.
UNOPENED = '<direction><direction-type><wedge type="stop"/></direction-type></direction>'

# A pickup of one quarter, a whole measure of two, and one that is silent.
SOPRANO = (
    note("", 2) + note("C5", 2),
    note("D5", 0, "<grace/>") + note("E5", 3) + note("F#5", 1) + note("G5", 4),
)
ALTO = (  # tied over the barline, then a chord
    note("A4", 4).replace("<voice>", '<tie type="start"/><voice>'),
    note("A4", 2).replace("<voice>", '<tie type="stop"/><voice>')
    + note("", 2)
    + note("E4", 4)
    + note("B-4", 4, "<chord/>"),
)
TENOR = (UNOPENED + note("", 4), note("D4", 8))  # of a clarinet in B flat, so it sounds as C4
BASS = (note("", 4), note("C3", 1) + note("D3", 1) + note("E3", 1) + note("", 5))


def score(*voices: tuple[str, str]) -> str:
    listed = "".join(
        f'<score-part id="P{i}"><part-name>{i}</part-name></score-part>' for i in range(len(voices))
    )
    parts = "".join(
        f'<part id="P{i}"><measure number="0" implicit="yes"><attributes>{TIMES}'
        f"{CLARINET if voice is TENOR else ''}</attributes>{voice[0]}</measure>"
        f'<measure number="1">{voice[1]}</measure>'
        f'<measure number="2">{note("", 8)}</measure></part>'
        for i, voice in enumerate(voices)
    )
    return f'<score-partwise version="4.0"><part-list>{listed}</part-list>{parts}</score-partwise>'


def test_what_sounds_at_each_eighth_note(tmp_path: Path) -> None:
    from music21 import converter

    file = tmp_path / "bwv1.xml"
    file.write_text(score(SOPRANO, ALTO, TENOR, BASS))
    assert chorales.frames(file) == [
        [69],  # the pickup: A4
        [69, 72],  # and C5
        [48, 60, 69, 76],  # C3, C4, A4 held, E5; not the grace note
        [52, 60, 76],  # E3, not the sixteenth before it; E5 sounds on, F#5 is yet to come
        [60, 64, 70, 79],  # C4, the chord, G5
        [60, 64, 70, 79],
    ]
    with pytest.warns(UserWarning, match="Could not import wedge"):
        converter.parse(file, forceSource=True, storePickle=False)


def test_only_scores_in_four_parts_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "bwv1.xml"
    for voices in ((SOPRANO, ALTO, BASS), (SOPRANO, ALTO, TENOR, BASS, BASS)):
        file.write_text(score(*voices))
        assert chorales.frames(file) is None


def test_a_silent_score_has_no_frames(tmp_path: Path) -> None:
    file = tmp_path / "bwv1.xml"
    file.write_text(score(*[(note("", 4), note("", 8))] * 4))
    assert chorales.frames(file) == []


# --- the split ---------------------------------------------------------------------------------


def test_the_whole_corpus_is_split_without_leaks(whole: chorales.Arrays) -> None:
    pieces: dict[str, list[list[tuple[int, ...]]]] = {}
    for split in ("train", "valid", "test"):
        rolls = np.split(whole[split], np.cumsum(whole[f"{split}_lengths"])[:-1])
        pieces[split] = [[tuple(frame.nonzero()[0].tolist()) for frame in roll] for roll in rolls]
    counts = {split: len(found) for split, found in pieces.items()}
    total = sum(counts.values())
    assert total > 300
    for split, share in {"train": 0.70, "valid": 0.15, "test": 0.15}.items():
        assert abs(counts[split] / total - share) < 0.05
    voices = Counter(len(frame) for found in pieces.values() for piece in found for frame in piece)
    assert max(voices) == 4
    assert voices[4] > 0.7 * sum(voices.values())

    def windows(piece: list[tuple[int, ...]]) -> set[tuple[tuple[int, ...], ...]]:
        """All stretches of 16 frames, in whatever key."""
        found = set()
        for start in range(len(piece) - 15):
            stretch = piece[start : start + 16]
            lowest = min((min(frame) for frame in stretch if frame), default=0)
            found.add(tuple(tuple(note - lowest for note in frame) for frame in stretch))
        return found

    trained = set().union(*(windows(piece) for piece in pieces["train"]))
    for split in ("valid", "test"):
        for number, piece in enumerate(pieces[split]):
            mine = windows(piece)
            assert len(mine & trained) < 0.25 * len(mine), (split, number)


def test_variants_of_one_work_share_its_split() -> None:
    numbers = [*range(1, 60), 62, 117, 158, 176, 177, 197, 253, 274, 279, 280, 398, 414]
    split = chorales.split_of(numbers)
    assert list(split) == numbers
    for later, earlier in chorales.SAME_SETTING.items():
        assert split[later] == split[earlier]
    assert split == chorales.split_of(numbers[::-1])
    assert set(split.values()) == {"train", "valid", "test"}


# --- the cache ---------------------------------------------------------------------------------


def test_the_scores_are_read_once(cache: Path, few: list[list[Path]]) -> None:
    first = tasks.create("chorales").describe()
    (kept,) = cache.iterdir()
    assert kept == chorales.cache_file()
    data.forget()
    assert tasks.create("music").describe() == first
    assert len(few) == 1
    # Two of the fourteen, bwv1.6 and bwv112.5, have more parts than four.
    assert ", 12 scores sha256:" in first["data"]["source"][0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "another", "more", "pickled"])
def test_a_damaged_cache_is_built_anew(
    cache: Path, few: list[list[Path]], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = chorales.load()
    file = chorales.cache_file()
    whole = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        # Inside the compressed data of an array, where only a checksum can tell.
        file.write_bytes(
            whole[:2000] + bytes(255 - byte for byte in whole[2000:2100]) + whole[2100:]
        )
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "another":
        with file.open("wb") as out:
            np.savez(out, train=good["train"])
    elif damage == "more":
        with file.open("wb") as out:
            np.savez(out, **good, alto=good["train"])  # type: ignore[arg-type]
    else:
        with file.open("wb") as out:
            np.savez(out, **{**good, "source": np.array([{"an": "object"}], object)})  # type: ignore[arg-type]
    again = chorales.load()
    assert again.keys() == good.keys()
    assert all((again[key] == good[key]).all() for key in good)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is damaged" in said
    assert chorales.load().keys() == good.keys()
    assert capsys.readouterr().err == ""
    assert [entry.name for entry in cache.iterdir()] == [file.name], "no temporary file is left"


@pytest.mark.parametrize(
    "changed",
    [
        {"train_lengths": np.array([2.0, 2.0])},
        {"train_lengths": np.array("2")},
        {"valid_lengths": np.array([2**62] * 4 + [4])},
        {"source": np.array("x")},
        {"train": np.zeros((4, 88), np.float32)},
        {"test": np.zeros((4, 87), np.uint8)},
    ],
)
def test_a_cache_of_unfit_arrays_is_built_anew(
    cache: Path,
    few: list[list[Path]],
    changed: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = chorales.load()
    with chorales.cache_file().open("wb") as out:
        np.savez(out, **{**good, **changed})  # type: ignore[arg-type]
    again = data.load("chorales")
    assert len(few) == 2
    assert all((again[key] == good[key]).all() for key in good)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"is damaged (data set chorales: {next(iter(changed))}" in said
    assert chorales.load().keys() == good.keys()
    assert len(few) == 2, "what was built took the place of what was damaged"


def test_a_cache_that_cannot_be_written_costs_one_line(
    cache: Path, few: list[list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the directory should be")
    assert tasks.create("chorales").input_width == 88
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot keep the chorales" in said


def test_a_failed_write_leaves_nothing_behind(
    cache: Path,
    few: list[list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert chorales.load().keys() >= {"train", "valid", "test"}
    assert "No space left on device" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_music21_is_not_imported_where_there_is_a_cache(
    cache: Path, few: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chorales.load()
    monkeypatch.setitem(sys.modules, "music21", None)  # importing it would raise
    assert len(data.load("chorales")["train"]) > 0
    assert len(few) == 1
    assert data.names()["chorales"]["available"]


def test_a_music21_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = chorales.scores()
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(DataError, match="chorales needs the package music21, and: import of"):
        chorales.build(files)


def test_without_music21_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install music21"):
        data.load("chorales")


def test_a_damaged_score_is_named(tmp_path: Path) -> None:
    file = tmp_path / "bwv1.mxl"
    file.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"bwv1\.mxl: not a readable score"):
        chorales.build([file])
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
    with pytest.raises(DataError, match=r"bwv1\.mxl: not a readable score"):
        chorales.build([file])


def test_progress_is_shown_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = chorales.scores()[:14]
    monkeypatch.setattr(chorales, "frames", lambda file: [[60], [62]])
    chorales.build(files)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(chorales, "_PATIENCE", -1.0)
    chorales.build(files)
    assert re.fullmatch(
        r"\rreading the chorales, once:  71%, +\d+ s left"
        r"\rreading the chorales, once: 100%, +\d+ s +\n",
        capsys.readouterr().err,
    )
