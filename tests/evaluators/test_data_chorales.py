"""The chorales: our reading of the scores against music21's own, the split, and the cache."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from evaluators import data, tasks
from evaluators.data import chorales, musicxml
from evaluators.errors import DataError

# Ordinary; a pickup and a rest at the end; transposing instruments and more parts; plain .xml with
# several voices in a part; sixteenths.
COMPARED = ("bwv66.6.mxl", "bwv111.6.mxl", "bwv1.6.mxl", "bwv67.4.xml", "bwv227.1.mxl")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("CELLSEARCH_DATA", raising=False)
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    data.forget()
    yield tmp_path / "cache"
    data.forget()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A corpus of fourteen scores, enough for all three splits."""
    files = chorales.scores()[:14]
    monkeypatch.setattr(chorales, "scores", lambda: files)
    return files


@pytest.mark.parametrize("name", COMPARED)
def test_a_score_sounds_as_music21_says(name: str) -> None:
    from music21 import converter

    file = next(file for file in chorales.scores() if file.name == name)
    mine = musicxml.frames(musicxml.parts(musicxml.text_of(file)), chorales.STEP)
    # Neither its cache of pickles in the temporary directory is read, nor one written.
    score = converter.parse(file, forceSource=True, storePickle=False).toSoundingPitch()
    sounding: dict[int, set[int]] = {}
    for note in score.flatten().notes:
        if not note.duration.isGrace:
            start = Fraction(note.offset) * 2
            end = start + Fraction(note.quarterLength) * 2
            for frame in range(-(-start // 1), -(-end // 1)):
                sounding.setdefault(frame, set()).update(int(p.midi) for p in note.pitches)
    last = max(sounding)
    theirs = [sorted(sounding.get(frame, ())) for frame in range(min(sounding), last + 1)]
    assert mine == theirs


def test_musicxml_by_hand() -> None:
    text = b"""<score-partwise><part>
      <measure><attributes><divisions>2</divisions></attributes>
        <note><pitch><step>C</step><octave>4</octave></pitch><duration>2</duration></note>
        <note><chord/><pitch><step>E</step><alter>-1</alter><octave>4</octave></pitch>
          <duration>4</duration></note>
        <note><grace/><pitch><step>D</step><octave>4</octave></pitch></note>
        <note><rest/><duration>2</duration></note>
        <backup><duration>4</duration></backup><forward><duration>3</duration></forward>
        <note><pitch><step>G</step><octave>4</octave></pitch><duration>1</duration></note>
      </measure>
      <measure><attributes><transpose><chromatic>2</chromatic></transpose></attributes>
        <note><pitch><step>C</step><octave>4</octave></pitch><duration>2</duration></note>
        <note><rest/><duration>6</duration></note>
      </measure></part></score-partwise>"""
    eighth = musicxml.TICKS // 2
    assert musicxml.frames(musicxml.parts(text), eighth) == [
        [60, 63],
        [60, 63],
        [63],
        [63, 67],
        [62],
        [62],
    ]
    assert musicxml.frames(musicxml.parts(text), 2 * eighth) == [[60, 63], [63], [62]]
    with pytest.raises(DataError, match="no usual note lasts 1/11"):
        musicxml.parts(text.replace(b"<divisions>2<", b"<divisions>11<").replace(b">2<", b">1<"))


def test_the_whole_corpus_is_split_without_leaks() -> None:
    arrays = chorales.build(chorales.scores())
    pieces: dict[str, list[list[tuple[int, ...]]]] = {}
    for split in ("train", "valid", "test"):
        rolls = np.split(arrays[split], np.cumsum(arrays[f"{split}_lengths"])[:-1])
        pieces[split] = [[tuple(frame.nonzero()[0].tolist()) for frame in roll] for roll in rolls]
    counts = {split: len(found) for split, found in pieces.items()}
    total = sum(counts.values())
    assert total > 300
    for split, share in {"train": 0.70, "valid": 0.15, "test": 0.15}.items():
        assert abs(counts[split] / total - share) < 0.05
    voices = Counter(len(frame) for found in pieces.values() for piece in found for frame in piece)
    assert max(voices) == 4 and voices[4] > 0.7 * sum(voices.values())

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


def test_the_scores_are_read_once(
    cache: Path, few: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tasks.create("chorales").describe()
    (kept,) = cache.iterdir()
    assert kept == chorales.cache_file()
    data.forget()
    monkeypatch.setattr(chorales, "build", lambda files: pytest.fail("read again"))
    assert tasks.create("music").describe() == first
    assert "scores sha256:" in first["data"]["source"][0]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "another", "pickled"])
def test_a_damaged_cache_is_built_anew(
    cache: Path, few: list[Path], damage: str, capsys: pytest.CaptureFixture[str]
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
    else:
        with file.open("wb") as out:
            np.savez(out, **{**good, "source": np.array([{"an": "object"}], object)})  # type: ignore[arg-type]
    again = chorales.load()
    assert again.keys() == good.keys()
    assert all((again[key] == good[key]).all() for key in good)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "is damaged" in said
    assert chorales.load().keys() == good.keys() and capsys.readouterr().err == ""
    assert [entry.name for entry in cache.iterdir()] == [file.name], "no temporary file is left"


def test_a_cache_that_cannot_be_written_costs_one_line(
    cache: Path, few: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the directory should be")
    assert tasks.create("chorales").input_width == 88
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cannot keep the chorales" in said


def test_a_failed_write_leaves_nothing_behind(
    cache: Path,
    few: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert chorales.load().keys() >= {"train", "valid", "test"}
    assert "No space left on device" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_music21_is_not_imported(few: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)  # importing it would raise
    monkeypatch.setattr(chorales, "scores", lambda: few)
    assert len(data.load("chorales")["train"]) > 0


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
    with pytest.raises(DataError, match="its container names no score"):
        chorales.build([file])


def test_progress_is_shown_when_it_takes_long(
    few: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chorales.build(few)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(chorales, "_PATIENCE", -1.0)
    chorales.build(few)
    said = capsys.readouterr().err
    assert "0 of 14 scores" in said and said.endswith(" s\n")
