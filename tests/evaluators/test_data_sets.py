"""The data layer: where it looks, what texts become, and arrays that are handed over."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators import data, tasks
from evaluators.data import places
from evaluators.errors import DataError

LINES = {
    "train": " the cat <unk> N \n the dog \n",
    "valid": " the dog \n",
    "test": " the bird \n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty $CELLSEARCH_DATA and an empty cache."""
    monkeypatch.setenv("CELLSEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    data.forget()
    yield tmp_path
    data.forget()


def write_treebank(directory: Path, lines: dict[str, str]) -> None:
    (directory / "ptb").mkdir(parents=True)
    for split, text in lines.items():
        (directory / "ptb" / f"ptb.{split}.txt").write_text(text, encoding="utf-8")


def decoded(arrays: dict[str, np.ndarray], split: str) -> list[str]:
    return [str(symbol) for symbol in arrays["vocab"][arrays[split]]]


# --- places ------------------------------------------------------------------------------------


def test_the_places_searched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.path() == {"$CELLSEARCH_DATA": here / "data", "cache": here / "cache"}
    monkeypatch.delenv("CELLSEARCH_DATA")
    monkeypatch.delenv("CELLSEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert data.path() == {"$CELLSEARCH_DATA": None, "cache": here / "xdg" / "cellsearch"}
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(here / "home"))
    assert places.cache_directory() == here / "home" / ".cache" / "cellsearch"


@pytest.mark.parametrize("variable", ["CELLSEARCH_DATA", "CELLSEARCH_CACHE", "XDG_CACHE_HOME"])
def test_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("CELLSEARCH_DATA")
    monkeypatch.delenv("CELLSEARCH_CACHE")
    monkeypatch.setenv(variable, "~nosuchuser/data")
    message = rf"^\${variable}: there is no home directory for '~nosuchuser/data'$"
    for use in (data.path, lambda: data.load("ptb_word"), lambda: data.fetch("ptb")):
        with pytest.raises(DataError, match=message):
            use()
    row = data.names()["ptb_word"]
    assert not row["available"]
    assert variable in row["where"]
    with pytest.raises(DataError, match=r"^the destination: there is no home directory"):
        data.fetch("ptb", "~nosuchuser/data")


@pytest.mark.parametrize("variable", ["CELLSEARCH_DATA", "CELLSEARCH_CACHE"])
def test_a_directory_that_cannot_be_searched_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/" + "x" * 5000)
    label = "cache" if variable == "CELLSEARCH_CACHE" else rf"\${variable}"
    for name in ("ptb_word", "jsb"):
        with pytest.raises(DataError, match=rf"^{name}: cannot search {label} \(.*\): /x+$"):
            data.load(name)
    rows = data.names()
    assert not rows["jsb"]["available"]
    assert "cannot search" in rows["jsb"]["where"]
    assert rows["chorales"]["available"], "its scores are read, with or without a cache"
    monkeypatch.setenv("CELLSEARCH_DATA", "/" + "x" * 5000)
    with pytest.raises(DataError, match=r"cannot write to .*; name another directory"):
        data.fetch("ptb")


@pytest.mark.parametrize("directory", ["data", "cache"])
def test_both_places_are_searched(here: Path, directory: str) -> None:
    write_treebank(here / directory, LINES)
    assert decoded(data.load("ptb_word"), "valid") == ["the", "dog", "<eos>"]


def test_missing_data_say_what_where_and_how(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as raised:
        tasks.create("ptb_word")
    assert str(raised.value) == (
        f"ptb_word needs ptb/ptb.train.txt: not under $CELLSEARCH_DATA ({here / 'data'}) "
        f"nor under {here / 'cache'}; get it with: cellsearch data fetch ptb"
    )
    monkeypatch.delenv("CELLSEARCH_DATA")
    with pytest.raises(DataError, match=r"not under \$CELLSEARCH_DATA \(not set\) nor under"):
        data.load("nottingham")
    write_treebank(here / "cache", {"train": LINES["train"], "test": LINES["test"]})
    with pytest.raises(DataError, match=r"ptb_char needs ptb/ptb\.valid\.txt"):
        data.load("ptb_char")


def test_the_catalogue_says_what_is_there_without_reading_it(here: Path) -> None:
    write_treebank(here / "data", LINES)
    rows = data.names()
    assert json.loads(json.dumps(rows)) == rows
    assert set(rows) == {name for name in tasks.names() if tasks.task_class(name).data_set}
    available = {name for name, row in rows.items() if row["available"]}
    assert {"ptb_word", "ptb_char", "pydoc_char", "chorales"} == available
    assert rows["ptb_word"]["size"] == 5_951_345
    assert rows["ptb_word"]["fetch"] == "ptb"
    assert rows["pydoc_char"]["fetch"] is None
    assert rows["pydoc_char"]["size"] == 0
    assert "cellsearch data fetch jsb" in rows["jsb"]["where"]
    for row in rows.values():
        assert row["description"]
        assert row["licence"]
        assert row["source"]


# --- Penn Treebank -----------------------------------------------------------------------------


def test_words_with_an_end_to_each_line(here: Path) -> None:
    write_treebank(here / "data", LINES)
    arrays = data.load("ptb_word")
    # Most frequent first, then alphabetical.
    assert arrays["vocab"].tolist() == ["<eos>", "the", "<unk>", "N", "cat", "dog"]
    assert " ".join(decoded(arrays, "train")) == "the cat <unk> N <eos> the dog <eos>"
    assert decoded(arrays, "test") == ["the", "<unk>", "<eos>"]  # "bird" is not a training word
    task = tasks.create("ptb_word", batch_size=2, unroll=3)
    assert task.input_width == 6
    assert task.unit == "perplexity"


def test_characters_of_the_same_words(here: Path) -> None:
    write_treebank(here / "data", {"train": " ab  c \n a \n", "valid": "b\n", "test": "a"})
    arrays = data.load("ptb_char")
    assert "".join(decoded(arrays, "train")) == "ab c\na\n"
    assert "".join(decoded(arrays, "valid")) == "b\n"
    assert "".join(decoded(arrays, "test")) == "a\n"
    assert arrays["vocab"].tolist() == ["\n", "a", " ", "b", "c"]


def test_what_only_the_held_out_text_contains_becomes_unknown(here: Path) -> None:
    write_treebank(here / "data", {"train": "a b", "valid": "a z", "test": "y"})
    arrays = data.load("ptb_word")
    assert arrays["vocab"].tolist() == ["<eos>", "a", "b", "<unk>"]
    assert decoded(arrays, "valid") == ["a", "<unk>", "<eos>"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_files_that_are_no_text_are_named(here: Path, content: bytes) -> None:
    write_treebank(here / "data", LINES)
    (here / "data" / "ptb" / "ptb.valid.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"ptb\.valid\.txt: "):
        data.load("ptb_word")


def test_a_text_that_cannot_be_read_is_named(here: Path) -> None:
    write_treebank(here / "data", LINES)
    file = here / "data" / "ptb" / "ptb.valid.txt"
    file.unlink()
    # A regular file, says the system, and refuses to read it from its beginning.
    file.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"ptb\.valid\.txt: cannot be read") as raised:
        data.load("ptb_word")
    assert "\n" not in str(raised.value)


def test_a_word_that_would_widen_the_vocabulary_is_refused(here: Path) -> None:
    write_treebank(here / "data", {**LINES, "train": "the cat " + "x" * 1001})
    message = r"ptb\.train\.txt: a word of 1001 characters, where 1000 is the most$"
    with pytest.raises(DataError, match=message):
        data.load("ptb_word")
    assert len(data.load("ptb_char")["train"]) == 1010, "by character there is nothing to widen"
    (here / "data" / "ptb" / "ptb.train.txt").write_text("the cat " + "x" * 1000)
    assert "x" * 1000 in data.load("ptb_word")["vocab"]


REAL = places.data_directory()


@pytest.mark.skipif(
    REAL is None or not (REAL / "ptb" / "ptb.train.txt").is_file(),
    reason="the real Penn Treebank is not under $CELLSEARCH_DATA; the other tests use made-up text",
)
def test_the_real_treebank_has_the_counts_everybody_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELLSEARCH_DATA", str(REAL))
    arrays = data.load("ptb_word")
    counts = [len(arrays[split]) for split in ("train", "valid", "test")]
    assert counts == [929_589, 73_760, 82_430]
    assert len(arrays["vocab"]) == 10_000


# --- the topics of Python ----------------------------------------------------------------------


def test_the_topics_of_this_python() -> None:
    topics = importlib.import_module("pydoc_data.topics").topics
    whole = "".join(text for _, text in sorted(topics.items()))
    arrays = data.load("pydoc_char")
    tokens = np.concatenate([arrays[split] for split in ("train", "valid", "test")])
    assert len(tokens) == len(whole) > 300_000
    assert len(arrays["vocab"]) == 97
    for symbol, number in zip(whole, tokens.tolist(), strict=True):
        plain = symbol == "\n" or " " <= symbol <= "~"
        assert arrays["vocab"][number] == (symbol if plain else "\N{REPLACEMENT CHARACTER}")
    shares = [len(arrays[split]) / len(whole) for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=1e-4)
    (origin,) = data.source("pydoc_char")
    assert origin.endswith(hashlib.sha256(whole.encode()).hexdigest())
    assert tasks.create("pydoc_char").describe()["data"]["source"] == [origin]


def test_a_python_without_topics_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: str | None = None) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    with pytest.raises(DataError, match="which this Python lacks"):
        data.load("pydoc_char")


# --- arrays ------------------------------------------------------------------------------------


def text_arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {split: np.array([0, 1, 1], np.int32) for split in ("train", "valid", "test")}
    return {**arrays, "vocab": np.array(["a", "b"]), "source": np.array(["x"]), **changed}


def roll_arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"source": np.array(["x"])}
    for split in ("train", "valid", "test"):
        arrays[split] = np.zeros((5, 88), np.uint8)
        arrays[f"{split}_lengths"] = np.array([2, 3])
    return {**arrays, **changed}


def test_installed_arrays_take_the_place_of_files() -> None:
    arrays = text_arrays()
    data.install("ptb_word", arrays)
    loaded = data.load("ptb_word")
    assert np.shares_memory(loaded["train"], arrays["train"]), "not copied"
    assert arrays["train"].flags.writeable, "the owner's array is left as it was"
    assert tasks.create("ptb_word").input_width == 2
    data.forget()
    with pytest.raises(DataError, match="ptb_word needs"):
        data.load("ptb_word")


def test_a_data_set_survives_the_way_to_a_worker(here: Path) -> None:
    """All of it is arrays that numpy can keep without pickling, and nothing else is needed."""
    write_treebank(here / "data", LINES)
    described = tasks.create("ptb_char").describe()
    np.savez(here / "sent.npz", **data.load("ptb_char"))  # type: ignore[arg-type]
    data.forget()
    with np.load(here / "sent.npz", allow_pickle=False) as sent:
        data.install("ptb_char", dict(sent))
    (here / "data" / "ptb" / "ptb.train.txt").unlink()
    assert tasks.create("ptb_char").describe() == described


def test_the_checksum_is_that_of_the_content() -> None:
    data.install("ptb_word", text_arrays())
    first = data.checksum("ptb_word")
    data.install("ptb_word", text_arrays(source=np.array(["elsewhere"])))
    assert data.checksum("ptb_word") == first
    for changed in (
        {"valid": np.array([0, 1, 0], np.int32)},
        {"vocab": np.array(["a", "c"])},
        {"train": np.array([0, 1, 1, 1], np.int32)},
    ):
        data.install("ptb_word", text_arrays(**changed))
        assert data.checksum("ptb_word") != first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": np.array([0, 2], np.int32)}, "valid goes beyond its vocabulary"),
        ({"valid": np.array([-1, 0], np.int32)}, "valid goes beyond its vocabulary"),
        ({"test": np.array([0], np.int32)}, "test is not a list of token numbers"),
        ({"train": np.array([0.0, 1.0])}, "train is not a list of token numbers"),
        ({"vocab": None}, "lacks the array 'vocab'"),
        ({"vocab": np.array([1, 2])}, "vocab is not a list of strings"),
        ({"vocab": np.array("ab")}, "vocab is not a list of strings"),
        ({"vocab": np.array([["a", "b"]])}, "vocab is not a list of strings"),
        ({"source": np.array([b"x"])}, "source is not a list of strings"),
    ],
)
def test_texts_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.install("ptb_word", text_arrays(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": np.zeros((5, 87), np.uint8)}, "valid is not"),
        ({"valid": np.zeros((5, 88), np.float32)}, "valid is not"),
        ({"valid": np.full((5, 88), 2, np.uint8)}, "valid holds values other than 0 and 1"),
        ({"test_lengths": np.array([2, 2])}, "test_lengths do not add up"),
        ({"test_lengths": np.array([1, 4])}, "test_lengths do not add up"),
        ({"test_lengths": np.array([], np.int64)}, "test_lengths do not add up"),
        ({"test_lengths": np.array([-2, 7])}, "test_lengths do not add up"),
        ({"test_lengths": np.array([2**62] * 4 + [5])}, "test_lengths do not add up"),
        ({"test_lengths": np.array([2.0, 3.0])}, "test_lengths is not a list of whole numbers"),
        ({"test_lengths": np.array(["2", "3"])}, "test_lengths is not a list of whole numbers"),
        ({"test_lengths": np.array(5)}, "test_lengths is not a list of whole numbers"),
        ({"test_lengths": np.array([[2, 3]])}, "test_lengths is not a list of whole numbers"),
        ({"source": np.array("x")}, "source is not a list of strings"),
    ],
)
def test_rolls_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.install("jsb", roll_arrays(**changed))


def test_unknown_data_sets_are_refused() -> None:
    for use in (data.load, data.checksum, data.source):
        with pytest.raises(DataError, match="unknown data set: 'jbs'; did you mean 'jsb'"):
            use("jbs")
    with pytest.raises(DataError, match="unknown data set"):
        data.install("jbs", roll_arrays())


@pytest.mark.parametrize("name", [[], {}, None, 3])
def test_names_that_are_no_strings_are_refused(name: Any) -> None:
    for use in (data.load, data.checksum, data.source):
        with pytest.raises(DataError, match="unknown data set: "):
            use(name)
    with pytest.raises(DataError, match="unknown data set: "):
        data.install(name, roll_arrays())
    with pytest.raises(DataError, match="unknown data to fetch: "):
        data.fetch(name)
