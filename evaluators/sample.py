"""What a trained model makes up: text by its symbols, music by its frames, one step at a time.

Letters: T steps, V vocabulary, F notes in a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.data.rolls import LOWEST
from evaluators.data.text import END, OTHER, UNKNOWN
from evaluators.errors import DataError
from evaluators.saved import Saved

TICKS = 480  #: of MIDI time in a quarter note
TEMPO = 100  #: quarter notes a minute


@torch.no_grad()
def text(
    saved: Saved, length: int, temperature: float = 1.0, seed: int = 0, prompt: str = ""
) -> str:
    """`length` symbols that follow the prompt, drawn from the model's distribution, its logits
    divided by `temperature` (0: always the likeliest). Raises `DataError` for a model that knows no
    symbols, and for a prompt with one that it does not know."""
    symbols = saved.about.vocabulary
    if symbols is None:
        raise DataError(
            f"a model of {saved.about.task} makes no text, expected one of language"
            + (" (its frames are music: --out FILE.mid)" if saved.about.beats else "")
        )
    by_word = max(map(len, symbols)) > 1 and END in symbols
    read = _encoded(prompt, symbols, by_word) or [_first(symbols)]
    rng = torch.Generator().manual_seed(seed)
    state, found = None, list[int]()
    feed = read
    for _ in range(length):
        logits, state = _step(saved, torch.tensor(feed).unsqueeze(1), state)
        feed = [_drawn(logits, temperature, rng)]
        found += feed
    made = [symbols[token] for token in found]
    if not by_word:
        return prompt + "".join(made)
    joined = " ".join([*prompt.split(), *made])
    return joined.replace(f" {END} ", "\n").replace(f" {END}", "\n")


@torch.no_grad()
def frames(saved: Saved, length: int, temperature: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """`length` frames (T, F) from silence on; every note sounds with the probability that the model
    gives it, its logit divided by `temperature` (0: where it is more likely than not). Raises
    `DataError` for a model of something else."""
    if saved.about.beats is None:
        raise DataError(f"a model of {saved.about.task} makes no music, expected one of music")
    rng = torch.Generator().manual_seed(seed)
    made = np.zeros((length, saved.ends.output_width), np.uint8)
    x, state = torch.zeros(1, 1, saved.ends.input_width), None
    for frame in made:
        logits, state = _step(saved, x, state)
        if temperature == 0:
            notes = logits > 0
        else:
            chances = torch.sigmoid(logits / temperature)
            notes = torch.rand(chances.shape, generator=rng) < chances
        frame[:] = notes.numpy()
        x = notes.float().view(1, 1, -1)
    return made


def midi(roll: NDArray[np.uint8], beats: float) -> bytes:
    """A MIDI file of frames (T, F), each `beats` quarter notes long; what sounds in frames that
    follow each other is one note. Raises `DataError` where mido is not installed."""
    mido = _mido()
    file = mido.MidiFile(ticks_per_beat=TICKS)
    track = mido.MidiTrack()
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(TEMPO)))
    step, waited = round(TICKS * beats), 0
    silent = np.zeros((1, roll.shape[1]), np.int8)
    changes = np.diff(np.concatenate([silent, roll.astype(np.int8), silent]), axis=0)
    for row in changes:
        # Ends first: a note that ends and one that begins may be the same key.
        for sign, kind in ((-1, "note_off"), (1, "note_on")):
            for column in np.flatnonzero(row == sign).tolist():
                message = mido.Message(kind, note=LOWEST + column, velocity=64, time=waited)
                track.append(message)
                waited = 0
        waited += step
    written = BytesIO()
    file.save(file=written)
    return written.getvalue()


def _step(saved: Saved, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits (V or F) behind the last of some inputs, tokens (T, 1) or frames (T, 1, F), and the
    state."""
    y, state = saved.model.outputs(x, state)
    logits: Tensor = saved.model.head(y[-1, 0])
    return logits, state


def _drawn(logits: Tensor, temperature: float, rng: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.double() / temperature, 0)
    return int(torch.multinomial(chances, 1, generator=rng))


def _encoded(prompt: str, symbols: Sequence[str], by_word: bool) -> list[int]:
    number = {symbol: i for i, symbol in enumerate(symbols)}
    rest = next((number[s] for s in (UNKNOWN, OTHER) if s in number), None)
    parts = prompt.replace("\n", f" {END} ").split() if by_word else list(prompt)
    found = [number.get(part, rest) for part in parts]
    for part, token in zip(parts, found, strict=True):
        if token is None:
            raise DataError(
                f"the prompt has {part!r}, which the model does not know, "
                f"expected some of: {' '.join(symbols)}"
            )
    return [token for token in found if token is not None]


def _first(symbols: Sequence[str]) -> int:
    """What stands before a text that has no beginning: the end of a line, where there is one."""
    return next((symbols.index(s) for s in (END, "\n", ".") if s in symbols), 0)


def _mido() -> ModuleType:
    try:
        import mido
    except ImportError:
        raise DataError(
            "MIDI files need mido, which is not installed: pip install 'cellsearch[music]'"
        ) from None
    module: ModuleType = mido
    return module
