"""The Bach chorales that come inside the music21 package, as piano rolls.

Lives here: which scores, the grid, the split, and the cache. Must not live here: reading MusicXML,
which is music21's work. It takes 70 ms of CPU a score, half a minute for all of them, so the arrays
are kept; music21 is imported only while they are made, by the driver. Workers are given the arrays.

* Scores: every file of music21/corpus/bach with exactly four parts (365 of 410 in music21 10.5);
  the others add instruments, or are not chorales.
* Grid: eighth notes, the pitches that sound at the beginning of each, transposing instruments as
  they sound and otherwise no transposition. The quarter notes of the usual JSB set would not hear a
  fifth of all notes; eighth notes miss 1.3 %. Repeats are not played twice, grace notes are left
  out.
* Split: by BWV number, so that variants of one work stay together, 14 : 3 : 3 in every 20 numbers.
  Six pairs of numbers are the same setting, or nearly (found by comparing transposed windows of 16
  frames); each pair counts as one number, otherwise a held-out piece would have been trained on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.data import places, rolls
from evaluators.data.catalogue import find
from evaluators.data.check import check
from evaluators.errors import DataError

Arrays = dict[str, NDArray[np.generic]]

VOICES = 4
STEPS = 2  # in a quarter note
# The later number of each pair of equal settings, and the earlier one it goes with.
SAME_SETTING = {177: 117, 274: 62, 279: 158, 280: 176, 398: 197, 414: 253}
_VALID, _TEST = (3, 10, 17), (6, 13, 19)  # places among 20 successive numbers
_VERSION = 1  # of this file's rules: an older cache is not used
_ARRAYS = {"source", *rolls.SPLITS, *(f"{split}_lengths" for split in rolls.SPLITS)}
_PATIENCE = 2.0  # seconds of work before anything is said about it


def scores() -> list[Path]:
    """The files in music21/corpus/bach, ordered by name; DataError when there are none."""
    found = importlib.util.find_spec("music21")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "chorales needs the package music21, whose corpus it reads: pip install music21"
        )
    directory = Path(found.submodule_search_locations[0]) / "corpus" / "bach"
    files = [file for file in directory.glob("*") if file.suffix in (".mxl", ".xml")]
    if not files:
        raise DataError(f"chorales needs the corpus of music21, and {directory} has no scores")
    return sorted(files, key=lambda file: file.name)


def split_of(numbers: list[int]) -> dict[int, str]:
    """The split of every BWV number, a function of the numbers present alone."""
    groups = sorted({SAME_SETTING.get(number, number) for number in numbers})
    split = {
        group: "valid" if i % 20 in _VALID else "test" if i % 20 in _TEST else "train"
        for i, group in enumerate(groups)
    }
    return {number: split[SAME_SETTING.get(number, number)] for number in numbers}


def frames(file: Path) -> list[list[int]] | None:
    """The MIDI numbers that sound at the beginning of every eighth note, ascending.

    Silence at both ends is cut off. None unless the score has four parts. Raises whatever music21
    does in a damaged file; ImportError without music21.
    """
    # What music21 has to say about notation is not about what sounds, and must not stop a run
    # whose warnings are errors.
    with warnings.catch_warnings(action="ignore"):
        from music21 import converter, stream

        # No pickle of an earlier parse is read from the temporary directory, and none written.
        score = converter.parse(file, forceSource=True, storePickle=False)
        if not isinstance(score, stream.Score) or len(score.parts) != VOICES:
            return None
        score.toSoundingPitch(inPlace=True)
        sounding: dict[int, set[int]] = {}
        # Part by part: flattening the whole score sorts it, which takes three times as long.
        for part in score.parts:
            for note in part.flatten().notes:
                # A note too short to reach a frame has none, and so has a grace note: no length.
                begin, end = note.offset, note.offset + note.quarterLength
                for frame in range(math.ceil(begin * STEPS), math.ceil(end * STEPS)):
                    for pitch in note.pitches:
                        sounding.setdefault(frame, set()).add(pitch.midi)
    if not sounding:
        return []
    return [sorted(sounding.get(frame, ())) for frame in range(min(sounding), max(sounding) + 1)]


def build(files: list[Path]) -> Arrays:
    """Reads the scores: arrays as of rolls.read. Progress on standard error when it takes long."""
    began = time.monotonic()
    pieces: dict[Path, rolls.Frames] = {}
    digest = hashlib.sha256()
    talked = False
    for index, file in enumerate(files):
        spent = time.monotonic() - began
        if spent > _PATIENCE and index and index % 10 == 0:
            talked = True
            share = index / len(files)
            left = spent / share - spent
            _say(f"\rreading the chorales, once: {share:4.0%}, {left:3.0f} s left", end="")
        try:
            pitches = frames(file)
            if pitches is None:
                continue
            pieces[file] = rolls.roll(pitches, file.name)
            digest.update(file.read_bytes())
        except ImportError as error:
            raise DataError(f"chorales needs the package music21, and: {error}") from error
        except Exception as error:  # whatever zip and XML readers raise in a damaged file
            raise DataError(f"{file}: not a readable score ({error})") from error
    if talked:
        _say(f"\rreading the chorales, once: 100%, {time.monotonic() - began:3.0f} s   ")
    numbers = {file: _bwv(file) for file in pieces}
    split = split_of(list(numbers.values()))
    arrays: Arrays = {}
    for name in rolls.SPLITS:
        chosen = [piece for file, piece in pieces.items() if split[numbers[file]] == name]
        if not chosen:
            raise DataError(f"the corpus of music21 leaves no chorale for {name}")
        arrays.update(rolls.joined(name, chosen))
    origin = f"music21 {_music21()} corpus/bach, {len(pieces)} scores sha256:{digest.hexdigest()}"
    return {**arrays, "source": np.array([origin])}


def cache_file() -> Path:
    """Where the arrays of the installed music21 are kept."""
    return places.cache_directory() / f"chorales-{_VERSION}-music21-{_music21()}.npz"


def load() -> Arrays:
    """The arrays from the cache, or built and put there; an unreadable or unfit one is built anew.

    A cache directory that cannot be written costs a line on standard error and the next run's time.
    """
    file = cache_file()
    # Unlike Path.is_file it says no where one may not look: then there is no cache to use.
    if os.path.isfile(file):
        try:
            # numpy leaks a file it opened itself and then cannot read.
            with file.open("rb") as raw, np.load(raw, allow_pickle=False) as stored:
                arrays = {key: stored[key] for key in stored.files}
            check(find("chorales"), arrays)
            if arrays.keys() == _ARRAYS:
                return arrays
            problem = "it holds other arrays"
        except Exception as error:  # zip, zlib and numpy raise a dozen kinds in a damaged file
            problem = str(error)
        _say(f"cellsearch: {file} is damaged ({problem}); reading the chorales again")
    arrays = build(scores())
    try:
        _store(file, arrays)
    except OSError as error:
        _say(f"cellsearch: cannot keep the chorales in {file.parent} ({error.strerror}); going on")
    return arrays


def _store(file: Path, arrays: Arrays) -> None:
    """Writes the cache in one step: other processes see the old file or the new, never half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        os.chmod(name, 0o644)  # mkstemp makes it private; the directory may be shared
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _bwv(file: Path) -> int:
    found = re.match(r"bwv(\d+)", file.name)
    if found is None:
        raise DataError(f"{file}: a score of Bach's without a BWV number in its name")
    return int(found.group(1))


def _music21() -> str:
    try:
        return importlib.metadata.version("music21")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)
