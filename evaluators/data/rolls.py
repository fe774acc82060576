"""Piano rolls from the files that circulate: .mat, and pickles of lists of MIDI numbers.

Lives here: reading both formats, from files that nobody vouches for. Must not live here: where the
files are (places), scores (chorales).

A pickle is a program. The one used here may build lists, tuples, dicts, strings and numbers and
nothing else: any name it asks for is refused, which is all the usual pickles ever needed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from evaluators.data import places
from evaluators.errors import DataError

Arrays = dict[str, NDArray[np.generic]]
Frames = NDArray[np.uint8]

LOWEST, HIGHEST = 21, 108  # MIDI numbers of a piano's first and last key
NOTES = HIGHEST - LOWEST + 1
SPLITS = ("train", "valid", "test")
_MAT_KEYS = {"train": "traindata", "valid": "validdata", "test": "testdata"}

# A pickle of 1 MB can repeat one list 10^15 times by reference, and a compressed .mat unfolds a
# thousandfold; the largest real set, Nottingham, has 266,537 frames.
MOST_FRAMES = 5_000_000


def read(path: Path) -> Arrays:
    """A .mat or a pickle as arrays: train ((frames, 88) uint8), train_lengths (frames a piece), …

    Raises DataError, naming the file and the place in it, for anything that is not a piano roll.
    """
    raw = places.read(path)
    splits = _from_mat(path, raw) if path.suffix == ".mat" else _from_pickle(path, raw)
    arrays = {key: value for split in SPLITS for key, value in joined(split, splits[split])}
    arrays["source"] = np.array([f"{path.name} sha256:{hashlib.sha256(raw).hexdigest()}"])
    return arrays


def joined(split: str, pieces: Sequence[Frames]) -> Iterable[tuple[str, NDArray[np.generic]]]:
    """Pieces of a split, end to end, and their lengths: what takes the place of a ragged array."""
    yield split, np.concatenate(pieces)
    yield f"{split}_lengths", np.array([len(piece) for piece in pieces], np.int64)


def roll(frames: Sequence[Sequence[int]], where: str) -> Frames:
    """Lists of the MIDI numbers that sound as a piano roll, (L, 88) of 0 and 1."""
    table = np.zeros((len(frames), NOTES), np.uint8)
    for index, notes in enumerate(frames):
        for note in notes:
            if isinstance(note, bool) or not isinstance(note, int):
                # Its type, not its value: a list can be nested so that it never ends printing.
                kind = type(note).__name__
                raise DataError(f"{where}, frame {index}: {kind} is not a MIDI number")
            if not LOWEST <= note <= HIGHEST:
                # Python refuses to print thousands of digits.
                bits = note.bit_length()
                number = str(note) if bits <= 64 else f"of {bits} bits"
                raise DataError(
                    f"{where}, frame {index}: note {number} is not on a piano ({LOWEST}-{HIGHEST})"
                )
            table[index, note - LOWEST] = 1
    return table


def _from_mat(path: Path, raw: bytes) -> dict[str, list[Frames]]:
    # 0.2 s to import, and only these files need it.
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(raw))
    except Exception as error:  # scipy raises whatever its parser trips over in a damaged file
        raise DataError(f"{path}: not a readable .mat file ({error})") from error
    splits = {}
    total = 0
    for split, key in _MAT_KEYS.items():
        cells = content.get(key)
        if not isinstance(cells, np.ndarray) or cells.dtype != object or cells.size == 0:
            raise DataError(f"{path}: expected a cell array {key!r} of piano rolls")
        total += sum(np.size(piece) for piece in cells.ravel())
        if total > MOST_FRAMES * NOTES:
            raise DataError(f"{path}: more than {MOST_FRAMES} frames")
        splits[split] = [
            _checked(piece, f"{path}, {key} {i}") for i, piece in enumerate(cells.ravel())
        ]
    return splits


def _checked(piece: Any, where: str) -> Frames:
    if not isinstance(piece, np.ndarray) or piece.ndim != 2 or piece.shape[1] != NOTES:
        raise DataError(f"{where}: expected (frames, {NOTES}), found {np.shape(piece)}")
    if len(piece) < 2:
        raise DataError(f"{where}: {len(piece)} frames; two are needed to predict one")
    # Written so that NaN fails too; other dtypes than numbers have no such comparison.
    if piece.dtype.kind not in "biuf" or not np.all((piece == 0) | (piece == 1)):
        raise DataError(f"{where}: a piano roll holds only 0 and 1")
    return piece.astype(np.uint8)


class _PlainData(pickle.Unpickler):
    """Unpickles lists, tuples, dicts, strings and numbers; refuses every global, so every call."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which piano rolls do not need")


def _check_memo(raw: bytes) -> None:
    """Refuses numbers of remembered objects that no pickle of this length needs.

    The unpickler keeps what it remembers in a table as long as twice the highest number, so that a
    pickle of 9 bytes can ask for gigabytes.
    """
    for opcode, number, _ in pickletools.genops(raw):
        remembers = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if remembers and isinstance(number, int) and number >= len(raw):
            raise pickle.UnpicklingError("it numbers more objects than it can hold")


def _from_pickle(path: Path, raw: bytes) -> dict[str, list[Frames]]:
    try:
        _check_memo(raw)
        # latin1: Python 2 wrote these files, and its strings are bytes.
        content = _PlainData(io.BytesIO(raw), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises nearly anything, IndexError to MemoryError
        # The error may quote the file, line breaks, megabytes and all.
        reason = " ".join(str(error)[:200].split())
        raise DataError(f"{path}: refused as a pickle of plain lists ({reason})") from error
    if not isinstance(content, dict) or any(split not in content for split in SPLITS):
        raise DataError(f"{path}: expected a dict with the keys {', '.join(SPLITS)}")
    splits: dict[str, list[Frames]] = {}
    total = 0
    for split in SPLITS:
        splits[split] = []
        for i, piece in enumerate(_sequence(content[split], f"{path}, {split}")):
            where = f"{path}, {split} {i}"
            frames = _sequence(piece, where)
            total += len(frames)
            if total > MOST_FRAMES:
                raise DataError(f"{path}: more than {MOST_FRAMES} frames")
            for index, notes in enumerate(frames):
                if not isinstance(notes, (list, tuple)) or len(notes) > NOTES:
                    raise DataError(f"{where}, frame {index}: expected a list of MIDI numbers")
            splits[split].append(_checked(roll(frames, where), where))
        if not splits[split]:
            raise DataError(f"{path}: {split} holds no piece")
    return splits


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where}: expected a list, found {type(value).__name__}")
    return value
