"""Texts as token numbers.

Lives here: Penn Treebank by word and by character, the topics of CPython. Must not live here: where
the files are (places), batches (evaluators/tasks/streams.py).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluators.data import places
from evaluators.errors import DataError

Arrays = dict[str, NDArray[np.generic]]

UNKNOWN = "<unk>"  # Penn Treebank's own word for the words beyond its 10,000
END = "<eos>"
OTHER = "\N{REPLACEMENT CHARACTER}"  # stands for all characters that pydoc_char does not tell apart
SPLITS = ("train", "valid", "test")

# The vocabulary is an array as wide as its longest word: one of 1 MB would take 4 MB for each.
LONGEST_WORD = 1000


def treebank(paths: Sequence[Path], by: str) -> Arrays:
    """ptb.train.txt, ptb.valid.txt, ptb.test.txt as arrays; by: "word" or "char".

    Words are what stands between blanks, with <eos> after each line. Characters are those of the
    same words joined by one space, with a newline after each line. The vocabulary is that of the
    training text, most frequent first; <unk> stands for what only the other two contain.
    """
    texts: dict[str, list[str]] = {}
    sources = []
    for split, path in zip(SPLITS, paths, strict=True):
        raw = places.read(path)
        sources.append(f"{path.name} sha256:{hashlib.sha256(raw).hexdigest()}")
        try:
            lines = [line.split() for line in raw.decode("utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a UTF-8 text ({error})") from error
        if by == "word":
            longest = max((len(word) for line in lines for word in line), default=0)
            if longest > LONGEST_WORD:
                raise DataError(
                    f"{path}: a word of {longest} characters, where {LONGEST_WORD} is the most"
                )
            texts[split] = [word for line in lines for word in (*line, END)]
        else:
            texts[split] = list("".join(" ".join(line) + "\n" for line in lines))
        if len(texts[split]) < 2:
            raise DataError(f"{path}: holds no text")
    return {**_numbered(texts), "source": np.array(sources)}


def _numbered(texts: Mapping[str, list[str]]) -> Arrays:
    counts = Counter(texts["train"])
    vocabulary = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
    number = {symbol: i for i, symbol in enumerate(vocabulary)}
    if UNKNOWN not in number and any(
        symbol not in number for split in ("valid", "test") for symbol in texts[split]
    ):
        number[UNKNOWN] = len(vocabulary)
        vocabulary.append(UNKNOWN)
    arrays: Arrays = {"vocab": np.array(vocabulary)}
    for split, text in texts.items():
        rest = number.get(UNKNOWN, -1)  # never used where there is no <unk>: see above
        arrays[split] = np.array([number.get(symbol, rest) for symbol in text], np.int32)
    return arrays


def topics_file() -> str:
    """Where pydoc_data.topics is, without importing it; DataError when this Python lacks it."""
    try:
        found = importlib.util.find_spec("pydoc_data.topics")
    except ModuleNotFoundError:  # not even the package around it
        found = None
    if found is None or found.origin is None:
        raise DataError(
            "pydoc_char needs the module pydoc_data.topics, which this Python lacks; "
            "some distributions package it apart from the interpreter"
        )
    return found.origin


def topics() -> Arrays:
    """The text behind Python's help("…") by character, 90/5/5; the same arrays for the same Python.

    `source` carries the version and the SHA-256 of the text, since every release edits it.
    """
    topics_file()
    found = importlib.import_module("pydoc_data.topics").topics
    text = "".join(found[key] for key in sorted(found))
    symbols = ["\n", *(chr(code) for code in range(32, 127)), OTHER]
    number = {symbol: i for i, symbol in enumerate(symbols)}
    rest = number[OTHER]
    tokens = np.array([number.get(symbol, rest) for symbol in text], np.int32)
    if len(tokens) < 1000:
        raise DataError(f"pydoc_data.topics holds only {len(tokens)} characters of text")
    first, second = len(tokens) * 90 // 100, len(tokens) * 95 // 100
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    origin = f"pydoc_data.topics of Python {platform.python_version()} sha256:{digest}"
    return {
        "vocab": np.array(symbols),
        "train": tokens[:first],
        "valid": tokens[first:second],
        "test": tokens[second:],
        "source": np.array([origin]),
    }
