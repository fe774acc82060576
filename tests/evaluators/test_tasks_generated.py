"""Memorisation, arithmetic and XML: the texts mean what the papers say, and seeds decide them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators import tasks
from evaluators.errors import DataError
from evaluators.task import Batch, Task
from evaluators.tasks import arithmetic, xml

GENERATED = ("memorisation", "arithmetic", "xml")


def text_of(task: Task, alphabet: str, steps: int, row: int = 0, seed: int = 0) -> tuple[str, str]:
    """What one row of the stream says, and "x" under every character that was a scored target."""
    batches = list(islice(task.train_batches(seed), -(-steps // task.unroll)))
    tokens = torch.cat([batches[0].inputs[:1], *(batch.targets for batch in batches)])[:, row]
    scored = ["?"]
    for batch in batches:
        mask = torch.ones(batch.targets.shape) if batch.mask is None else batch.mask
        scored += ["x" if value == 1 else " " for value in mask[:, row].tolist()]
    return "".join(alphabet[i] for i in tokens.tolist()), "".join(scored)


def same(one: Batch, other: Batch) -> bool:
    masks = (one.mask is None and other.mask is None) or (
        one.mask is not None and other.mask is not None and torch.equal(one.mask, other.mask)
    )
    return (
        torch.equal(one.inputs, other.inputs)
        and torch.equal(one.targets, other.targets)
        and masks
        and one.first == other.first
    )


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATED)
def test_the_seed_alone_decides_the_batches(name: str) -> None:
    task, again = tasks.create(name), tasks.create(name)
    first = list(islice(task.train_batches(3), 5))
    assert all(map(same, first, again.train_batches(3)))
    assert not any(map(same, first, task.train_batches(4)))


@pytest.mark.parametrize("name", GENERATED)
def test_evaluation_is_fixed_and_no_split_repeats_another(name: str) -> None:
    task, again = tasks.create(name), tasks.create(name)
    valid, test = list(task.eval_batches("valid")), list(task.eval_batches("test"))
    assert len(valid) >= 1
    assert all(map(same, valid, again.eval_batches("valid")))
    rows = {}
    for split, batch in {
        "valid": valid[0],
        "test": test[0],
        **{f"train {seed}": next(task.train_batches(seed)) for seed in range(3)},
    }.items():
        rows[split] = {tuple(row) for row in batch.inputs.T.tolist()}
    for split, mine in rows.items():
        for other, theirs in rows.items():
            # 26^5 rows of memorisation: two may be equal by chance, two streams may not.
            assert split == other or len(mine & theirs) <= 1, (split, other)


def digests() -> list[str]:
    """What describes a task and comes out of it, hashed: one line for each."""
    lines = []
    for name in (*GENERATED, "pydoc_char"):
        task = tasks.create(name)
        digest = hashlib.sha256(repr(task.describe()).encode())
        for batch in [*islice(task.train_batches(7), 3), *task.eval_batches("valid")]:
            digest.update(batch.inputs.numpy().tobytes())
        lines.append(f"{name} {digest.hexdigest()}")
    return lines


def test_streams_do_not_depend_on_the_hash_seed() -> None:
    root = Path(__file__).parents[2]
    script = "from test_tasks_generated import digests; print(*digests(), sep='\\n')"
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    other = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == digests()


@pytest.mark.parametrize("name", ["arithmetic", "xml"])
def test_windows_of_a_stream_line_up(name: str) -> None:
    task = tasks.create(name, unroll=7, batch_size=3)
    batches = list(islice(task.train_batches(0), 150))  # more than one refill of the columns
    assert [batch.first for batch in batches] == [True] + [False] * 149
    for batch, following in pairwise(batches):
        assert batch.inputs.shape == batch.targets.shape == (7, 3)
        assert torch.equal(batch.inputs[1:], batch.targets[:-1])
        assert torch.equal(following.inputs[0], batch.targets[-1])


@pytest.mark.parametrize("name", ["arithmetic", "xml"])
def test_a_stream_says_the_same_whatever_the_batch_size_and_the_unroll(name: str) -> None:
    alphabet = {"arithmetic": arithmetic.ALPHABET, "xml": xml.ALPHABET}[name]
    wide = text_of(tasks.create(name, batch_size=5, unroll=100), alphabet, 4000, row=1)
    narrow = text_of(tasks.create(name, batch_size=2, unroll=8), alphabet, 4000, row=1)
    assert wide[0][:4000] == narrow[0][:4000]
    assert wide[1][:4000] == narrow[1][:4000]
    assert wide[0] != text_of(tasks.create(name), alphabet, 4000, row=2)[0]


@pytest.mark.parametrize("name", ["arithmetic", "xml"])
@pytest.mark.parametrize("size", [1000, 1001])
def test_the_size_of_the_evaluation_is_the_option(name: str, size: int) -> None:
    task = tasks.create(name, valid_size=size, eval_batch_size=10, unroll=35)
    batches = list(task.eval_batches("valid"))
    assert size <= sum(batch.targets.numel() for batch in batches) < size + 10
    assert [batch.first for batch in batches] == [True] + [False] * (len(batches) - 1)
    assert max(len(batch.inputs) for batch in batches) <= 35


# --- memorisation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("symbols", "length"), [(26, 5), (2, 1), (3, 9)])
def test_memorisation_asks_for_what_was_read(symbols: int, length: int) -> None:
    task = tasks.create("memorisation", symbols=symbols, length=length, batch_size=8)
    assert task.input_width == task.output_width == symbols + 1
    assert task.unroll == 2 * length
    for batch in islice(task.train_batches(1), 3):
        assert batch.first
        assert batch.inputs.shape == (2 * length, 8)
        read = batch.inputs[:length]
        assert int(read.min()) >= 0
        assert int(read.max()) < symbols
        assert (batch.inputs[length] == symbols).all()  # the marker, and nowhere else
        assert int((batch.inputs == symbols).sum()) == 8
        assert torch.equal(batch.targets[length:], read)
        assert torch.equal(batch.inputs[length + 1 :], read[:-1])  # teacher forcing
        assert batch.mask is not None
        assert batch.mask.dtype == torch.float32
        assert torch.equal(batch.mask.sum(1), torch.tensor([0.0] * length + [8.0] * length))


def test_memorisation_uses_every_symbol_and_gives_the_rows_asked_for() -> None:
    task = tasks.create("memorisation", valid_size=1000, eval_batch_size=300)
    batches = list(task.eval_batches("valid"))
    assert [batch.inputs.shape[1] for batch in batches] == [300, 300, 300, 100]
    seen = torch.cat([batch.inputs[:5].flatten() for batch in batches])
    counts = torch.bincount(seen, minlength=26)
    assert len(counts) == 26
    assert int(counts.min()) > 120


# --- arithmetic --------------------------------------------------------------------------------

EXAMPLE = re.compile(r"([^=.]*)=(-?\d+)\.")
QUESTION = re.compile(r"(-?\d+)([+-])(-?\d+)")


@pytest.mark.parametrize("digits", [1, 3, 8, 17])
@pytest.mark.parametrize("distractors", [True, False])
def test_arithmetic_adds_up_and_scores_the_answers_alone(digits: int, distractors: bool) -> None:
    task = tasks.create("arithmetic", digits=digits, distractors=distractors, batch_size=2)
    text, scored = text_of(task, arithmetic.ALPHABET, 20_000, row=1)
    position = 0
    lengths: Counter[int] = Counter()
    operators: Counter[str] = Counter()
    signs: Counter[bool] = Counter()
    for example in EXAMPLE.finditer(text):
        assert example.start() == position, "nothing stands between two examples"
        position = example.end()
        question = re.sub("[a-z]", "", example[1])
        assert distractors or question == example[1]
        parsed = QUESTION.fullmatch(question)
        assert parsed is not None, question
        left, operator, right = parsed.groups()
        result = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert str(result) == example[2], example[0]
        for operand in (left, right):
            assert str(int(operand)) == operand, "no leading zeros, no -0"
            lengths[len(operand.lstrip("-"))] += 1
            signs[operand.startswith("-")] += 1
        operators[operator] += 1
        mask = scored[example.start() : example.end()]
        asked = len(example[1]) + 1
        # The very first character of the stream is never a target.
        assert mask.lstrip("?").strip(" ") == "x" * (len(example[0]) - asked)
        assert mask.endswith("x" * (len(example[0]) - asked))
    assert len(text) - position < 200
    total = sum(lengths.values())
    assert sorted(lengths) == list(range(1, digits + 1))
    for counts, share in ((lengths, 1 / digits), (operators, 1 / 2)):
        for count in counts.values():
            n = sum(counts.values())
            assert abs(count / n - share) < 5 * (share * (1 - share) / n) ** 0.5 + 1e-9
    if digits > 1:  # the sign of zero is lost, and one operand of one digit in ten is zero
        assert abs(signs[True] / total - 0.5 * (1 - 0.1 / digits)) < 5 * 0.5 / total**0.5


def test_arithmetic_letters_follow_the_stated_distribution() -> None:
    text, _ = text_of(tasks.create("arithmetic"), arithmetic.ALPHABET, 40_000)
    gaps: Counter[int] = Counter()
    letters: Counter[str] = Counter()
    for example in EXAMPLE.finditer(text):
        assert not example[1][0].isalpha(), "letters only follow a character"
        gaps.update(len(gap) for gap in re.findall(r"[\d+-]([a-z]*)(?=[\d+=-])", example[1] + "="))
        letters.update(re.findall("[a-z]", example[1]))
    total = sum(gaps.values())
    assert sorted(gaps) == [0, 1, 2, 3]
    for gap, share in {0: 1 / 2, 1: 1 / 6, 2: 1 / 6, 3: 1 / 6}.items():
        assert abs(gaps[gap] / total - share) < 5 * (share / total) ** 0.5
    assert len(letters) == 26


def test_arithmetic_refuses_a_validation_text_without_an_answer() -> None:
    task = tasks.create("arithmetic", valid_size=5, eval_batch_size=5)
    with pytest.raises(DataError, match="valid_size=5 is too short"):
        task.eval_batches("valid")


# --- XML ---------------------------------------------------------------------------------------


def test_xml_is_well_nested_and_every_step_is_scored() -> None:
    task = tasks.create("xml")
    assert next(task.train_batches(0)).mask is None
    assert task.input_width == 29
    text, _ = text_of(task, xml.ALPHABET, 60_000)
    tags = re.findall(r"<(/?)([a-z]+)>", text)
    assert len("".join(f"<{slash}{name}>" for slash, name in tags)) > len(text) - 14
    stack: list[str] = []
    iterations = longest = 0
    lengths: Counter[int] = Counter()
    for slash, name in tags:
        if slash:
            assert stack.pop() == name
        else:
            assert iterations < xml.ITERATIONS, "a document only closes after 50 iterations"
            stack.append(name)
            lengths[len(name)] += 1
        iterations = iterations + 1 if stack else 0
        longest = max(longest, iterations)
    assert sorted(lengths) == list(range(2, 11))
    total = sum(lengths.values())
    assert all(
        abs(count / total - 1 / 9) < 5 * (1 / 9 / total) ** 0.5 for count in lengths.values()
    )
    assert longest > xml.ITERATIONS, "some document met the limit"


def test_xml_opens_and_closes_with_fair_coins() -> None:
    """What follows an opening tag is a free flip (after a closing one, the end may hide a flip)."""
    rng = np.random.default_rng(0)
    pieces = xml.XML().pieces(rng)
    text = "".join(xml.ALPHABET[i] for i in np.concatenate([next(pieces)[0] for _ in range(40)]))
    depth, opens_after_open, opens = 0, 0, 0
    previous = ""
    for slash, _ in re.findall(r"<(/?)([a-z]+)>", text):
        if previous == "open" and depth < 20:  # documents at their limit are deeper
            opens += 1
            opens_after_open += not slash
        depth += -1 if slash else 1
        previous = "close" if slash else "open"
    assert abs(opens_after_open / opens - 0.5) < 5 * 0.5 / opens**0.5
