"""Trained models as files, and what they make up."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import torch
from safetensors.torch import save

import cellgraph as cg
from cellgraph.exporters.torch_model import Ends
from evaluators import DataError, Settings, evaluate, sample, saved, tasks
from evaluators.metrics import measure
from evaluators.saved import About, Saved
from evaluators.train import trained
from tests.evaluators.small_tasks import Frames

SMALL = Settings(optimizer="adam", scale=1.4, lr=0.01, clip=5.0, layers=2, params=4_000)
LANGUAGE = {"train_limit": 3000, "valid_limit": 500, "test_limit": 500, "unroll": 10}


@pytest.fixture(scope="module")
def language() -> tuple[Saved, bytes]:
    """A model that has hardly learned anything."""
    task, cell = tasks.create("language", **LANGUAGE), cg.load("gru")
    record, model = trained(cell, task, SMALL, 12, seed=3)
    assert model is not None
    assert not model.training
    (plain,) = evaluate(cell, task, SMALL, 12, seed=3)
    assert record["metrics"] == plain["metrics"]
    assert record["curve"] == plain["curve"]
    about = About.of(task, record["metrics"], {"run": "tour", "key": cell.key()})
    made = saved.dump(model, cell, task, SMALL, about)
    return Saved(cell, SMALL, Ends("tokens", 97, 97), model, about), made


def read(folder: Path, content: bytes) -> Saved:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    return saved.load(file)


def test_a_model_comes_back(language: tuple[Saved, bytes], tmp_path: Path) -> None:
    ours, content = language
    found = read(tmp_path, content)
    assert (found.cell, found.settings, found.about) == (ours.cell, ours.settings, ours.about)
    assert found.about.vocabulary is not None
    assert found.about.vocabulary[0] == "\n"
    tokens = torch.randint(97, (9, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(
            found.model.outputs(tokens, None), ours.model.outputs(tokens, None), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_best_parameters_are_kept_not_the_last() -> None:
    """Where the last evaluation is worse, as here with a rate that is far too high."""
    task = tasks.create("memorisation", valid_size=256)
    wild = Settings(optimizer="adam", scale=1.4, lr=0.3, clip=5.0, layers=1, params=3_000)
    record, model = trained("gru", task, wild, 60, seed=1)
    assert model is not None
    assert record["metrics"]["step"] < record["final"]["step"]
    best = {name: value for name, value in record["metrics"].items() if name != "step"}
    assert measure(model, task, "valid") == best


def test_a_training_that_ends_badly_leaves_no_model() -> None:
    cell = cg.parse("cell burst(x, h)\n h' = exp(exp(W @ x + U @ h)) * h + exp(V @ x)")
    record, model = trained(cell, "memorisation", SMALL, 50, seed=0)
    assert record["status"] == "diverged"
    assert model is None


def test_files_that_are_none(language: tuple[Saved, bytes], tmp_path: Path) -> None:
    _, content = language
    with pytest.raises(DataError, match=r"no\.safetensors is not there, expected a file of weight"):
        saved.load(tmp_path / "no.safetensors")
    for garbage in (b"", b"hello", content[:100], content[:-1]):
        with pytest.raises(DataError, match=r"cannot be read .*, expected safetensors"):
            read(tmp_path, garbage)
    with pytest.raises(DataError, match="without a header of ours"):
        read(tmp_path, save({"a": torch.zeros(2)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "version 9, expected 1"),
        ({"cell": "cell a("}, "damaged: line 1"),
        ({"hidden_size": 10**9}, "a size is 1000000000, expected a whole number up to"),
        ({"hidden_size": 7}, "size mismatch"),
        ({"widths": ["words", 97, 97]}, "inputs are 'words', expected tokens or frames"),
        ({"settings": {}}, "setting"),
        ({"about": None}, "NoneType"),
    ],
)
def test_damaged_headers(
    change: dict[str, Any], message: str, language: tuple[Saved, bytes], tmp_path: Path
) -> None:
    ours, content = language
    size = int.from_bytes(content[:8], "little")
    held = json.loads(content[8 : 8 + size])["__metadata__"][saved.HEADER]
    text = json.dumps(json.loads(held) | change)
    made = save(dict(ours.model.state_dict()), metadata={saved.HEADER: text})
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, made)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("safetensors", lambda: saved.load("a.safetensors")),
        ("mido", lambda: sample.midi(np.zeros((1, 88), np.uint8), 0.5)),
    ],
    ids=["safetensors", "mido"],
)
def test_what_is_not_installed_is_named(
    name: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=r"not installed: pip install 'cellsearch\["):
        use()


# -- what models make up


def test_text_follows_its_prompt_and_its_seed(language: tuple[Saved, bytes]) -> None:
    model, _ = language
    made = sample.text(model, 50, prompt="The ", seed=1)
    assert made.startswith("The ")
    assert len(made) == 54
    assert made == sample.text(model, 50, prompt="The ", seed=1)
    assert made != sample.text(model, 50, prompt="The ", seed=2)
    likeliest = sample.text(model, 20, temperature=0)
    assert likeliest == sample.text(model, 20, temperature=0, seed=5)
    with torch.no_grad():
        y, _ = model.model.outputs(torch.tensor([[0]]), None)
        first = int(model.model.head(y[0, 0]).argmax())
    assert model.about.vocabulary is not None
    assert likeliest[0] == model.about.vocabulary[first]


def test_a_prompt_with_unknown_symbols() -> None:
    task = tasks.create("arithmetic", digits=1, valid_size=1400)
    record, model = trained("gru", task, SMALL, 4, seed=0)
    assert model is not None
    about = About.of(task, record["metrics"])
    known = Saved(cg.load("gru"), SMALL, Ends("tokens", 40, 40), model, about)
    with pytest.raises(DataError, match="the prompt has 'Z', which the model does not know"):
        sample.text(known, 5, prompt="aZ")
    with pytest.raises(DataError, match="makes no music, expected one of music"):
        sample.frames(known, 5)


def test_a_model_without_symbols() -> None:
    task = tasks.create("memorisation", valid_size=64)
    record, model = trained("gru", task, SMALL, 4, seed=0)
    assert model is not None
    about = About.of(task, record["metrics"])
    with pytest.raises(DataError, match="a model of memorisation makes no text"):
        sample.text(Saved(cg.load("gru"), SMALL, Ends("tokens", 27, 27), model, about), 5)


def test_music_is_frames() -> None:
    record, model = trained("gru", Frames(), SMALL, 4, seed=0)
    assert model is not None
    about = replace(About.of(Frames(), record["metrics"]), beats=0.5)
    music = Saved(cg.load("gru"), SMALL, Ends("frames", 7, 7), model, about)
    roll = sample.frames(music, 30, seed=1)
    assert roll.shape == (30, 7)
    assert (sample.frames(music, 5, temperature=0) == sample.frames(music, 5, 0, seed=9)).all()
    assert set(np.unique(roll)) <= {0, 1}
    assert (roll == sample.frames(music, 30, seed=1)).all()
    assert (roll != sample.frames(music, 30, seed=2)).any()
    with pytest.raises(DataError, match="makes no text, expected one of language"):
        sample.text(music, 5)


def test_midi_says_what_the_frames_say() -> None:
    rng = random.Random(0)
    roll = np.array([[rng.random() < 0.3 for _ in range(88)] for _ in range(40)], np.uint8)
    file = mido.MidiFile(file=io.BytesIO(sample.midi(roll, 0.5)))
    found, now, sounding = np.zeros_like(roll), 0, dict[int, int]()
    for message in file.tracks[0]:
        now += message.time
        if message.type == "note_on":
            sounding[message.note] = now
        elif message.type == "note_off":
            frames = slice(sounding.pop(message.note) // 240, now // 240)
            found[frames, message.note - 21] = 1
    assert not sounding
    assert (found == roll).all()
