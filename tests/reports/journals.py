"""A small run written by hand, every kind of fate in it, so that each number can be worked out.

    id  cell          memorisation   ptb_char       jsb          becomes
    0   lstm (seed)   –              0.50, 0.48     9.0, 8.8     0.909…
    1   gru, baseline –              0.52, diverged 8.5, 8.0     1
    2   flat          0.80           –              –            rejected at memorisation
    3   slow          0.97           0.40           –            rejected at ptb_char
    4   good          0.99           0.546          7.5          evaluated
    5   <img …>       1.00           0.52           20.0         rejected at jsb
    6   fatal         crashed        –              –            rejected at memorisation
    7   flat, again   0.96           no result yet  –            running
    8   late          no result yet  –              –            running

and a re-evaluation of good on ptb_char: 0.572, diverged. More is better on ptb_char, less on jsb.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cellgraph as cg
from search.journal import CandidateRow, EventRow, Journal, ResultRow, UnitRow

LSTM, GRU = str(cg.load("lstm")), str(cg.load("gru"))
FLAT = "cell flat(x, h)\n    h' = tanh(W @ x + h)\n"
SLOW = "cell slow(x, h)\n    h' = tanh(W @ x + U @ h + b + h)\n"
GOOD = """# <script>alert("doc")</script>
cell good(x, h)
    r  = sigmoid(W_r @ x + U_r @ h + b_r)
    z  = sigmoid(W_z @ x + b_z)
    g  = tanh(W_g @ x + U_g @ (r * h) + b_g)
    h' = z * h + (1 - z) * g
"""
HOSTILE = """cell hostile(x, h)
    z  = sigmoid(W_z @ x + b_z)
    g  = relu(W_g @ x + U_g @ h + b_g)
    h' = z * h + (1 - z) * g
    init b_z = 1
"""
FATAL = "cell fatal(x, h)\n    h' = exp(exp(W @ x + U @ h))\n"
LATE = "cell late(x, h)\n    h' = sigmoid(W @ x + U @ h)\n"
NAME = "<img src=x onerror=alert(1)>\x1b[31m[bold]"
KEYS = {
    name: cg.parse(text).key()
    for name, text in {
        "lstm": LSTM, "gru": GRU, "flat": FLAT, "slow": SLOW, "good": GOOD, "hostile": HOSTILE,
        "fatal": FATAL, "late": LATE,
    }.items()
}  # fmt: skip

CONFIG = {
    "name": "<b>small</b>",
    "seed": 3,
    "search": {
        "algorithm": "jozefowicz",
        "candidates": 8,
        "pool": 3,
        "seeds": ["lstm", "gru"],
        "baseline": "gru",
        "seed_settings": 2,
        "settings": 2,
    },
}
_STAGE = {"unit": None, "filter": False, "threshold": 0.9, "steps": 100, "settings_in_grid": 18}
STAGES: list[dict[str, Any]] = [
    {**_STAGE, "name": "memorisation", "metric": "accuracy", "maximise": True, "family": "memory",
     "filter": True, "threshold": 0.95},
    {**_STAGE, "name": "ptb_char", "metric": "accuracy", "maximise": True, "family": "language",
     "unit": "bits_per_character"},
    {**_STAGE, "name": "jsb", "metric": "nll", "maximise": False, "family": "music", "unit": "nll"},
]  # fmt: skip
META = {
    "config": json.dumps(CONFIG),
    "environment": json.dumps(
        {
            "versions": {"python": "3.11.9", "torch": "2.6.0"},
            "platform": "Linux x86_64",
            "data": {
                "memorisation": {"task": "memorisation", "options": {"length": 5}, "data": None},
                "ptb_char": {"task": "ptb_char", "options": {"batch_size": 20}, "data": {
                    "name": "ptb", "sha256": "12" * 32, "source": ["ptb.train.txt 34567"]}},
                "jsb": {"task": "jsb", "options": {}, "data": {
                    "name": "jsb", "sha256": "ab" * 32, "source": ["<i>JSB</i>.mat"]}},
            },
        }
    ),
    "seeds": json.dumps([LSTM, GRU]),
    "stages": json.dumps(STAGES),
    "created": "2026-01-02T03:04:05+00:00",
}  # fmt: skip

CANDIDATES = [
    CandidateRow(0, KEYS["lstm"], "lstm", LSTM, "seed"),
    CandidateRow(1, KEYS["gru"], "gru", GRU, "seed"),
    CandidateRow(2, KEYS["flat"], "flat", FLAT, "mutation", (1,)),
    CandidateRow(3, KEYS["slow"], "slow", SLOW, "mutation", (0,)),
    CandidateRow(4, KEYS["good"], "good", GOOD, "mutation", (1,)),
    CandidateRow(5, KEYS["hostile"], NAME, HOSTILE, "crossover", (4, 0)),
    CandidateRow(6, KEYS["fatal"], "fatal", FATAL, "mutation", (4,)),
    CandidateRow(7, KEYS["flat"], "flat", FLAT, "mutation", (4,)),
    CandidateRow(8, KEYS["late"], "late", LATE, "mutation", (1,)),
]


def setting(number: int) -> dict[str, Any]:
    return {"optimizer": "adam", "lr": 0.001 * (number + 1), "scale": 1.0, "clip": 5.0,
            "layers": 1, "params": 2000, "dropout": 0.0}  # fmt: skip


def record(stage: str, value: float | None, number: int) -> dict[str, Any]:
    """An ok training that reached `value` after half of its curve; None, one that diverged."""
    cost = {"steps": 100, "seconds": 2.5, "hidden_size": 17, "parameters": 1987}
    made = {"setting": setting(number), "seed": 1, "cost": {**cost, "flops_per_step": 4000}}
    if value is None:
        made["cost"] = {**made["cost"], "steps": 60}
        # Good until it diverged, which must not help it.
        metrics = {"loss": 0.1, "accuracy": 0.999, "nll": 0.1, "step": 50}
        curve = [[50, 1.0, 0.1, 0.999], [60, math.nan, math.inf, None]]
        error = "training loss <inf> at step 60"
        return {**made, "status": "diverged", "error": error, "curve": curve, "metrics": metrics}
    if stage == "jsb":
        metrics = {"loss": value, "nll": value, "step": 100}
    else:
        metrics = {"loss": 1.0 - value, "accuracy": value, "step": 100}
        metrics["bits_per_character"] = (1.0 - value) / math.log(2)
    curve = [[50, 2.0, 1.5, value / 2], [100, 1.2, 1.1, value]]
    return {**made, "status": "ok", "error": None, "curve": curve, "metrics": metrics}


_M, _P, _J = "memorisation", "ptb_char", "jsb"
#: candidate, stage, purpose, metrics ("crashed": the whole unit; absent: no result), virtual end
_UNITS: list[tuple[int, str, str, Sequence[float | None] | str | None, float]] = [
    (0, _P, "seed", (0.50, 0.48), 1.0),
    (0, _J, "seed", (9.0, 8.8), 1.0),
    (1, _P, "seed", (0.52, None), 2.0),
    (1, _J, "seed", (8.5, 8.0), 2.0),
    (2, _M, "candidate", (0.80,), 3.0),
    (3, _M, "candidate", (0.97,), 3.0),
    (4, _M, "candidate", (0.99,), 3.0),
    (3, _P, "candidate", (0.40, 0.3), 5.0),
    (4, _P, "candidate", (0.546, 0.5), 5.0),
    (5, _M, "candidate", (1.0,), 6.0),
    (4, _J, "candidate", (7.5, None), 7.0),
    (6, _M, "candidate", "crashed", 7.0),
    (5, _P, "candidate", (0.52, 0.1), 8.0),
    (4, _P, "re-evaluation", (0.572, None), 9.0),
    (5, _J, "candidate", (20.0, 30.0), 10.0),
    (7, _M, "candidate", (0.96,), 11.0),
    (7, _P, "candidate", None, 13.0),
    (8, _M, "candidate", None, 12.0),
]


def rows(worker: str = "w") -> tuple[list[UnitRow], list[ResultRow]]:
    units, results = [], []
    for number, (candidate, stage, purpose, values, end) in enumerate(_UNITS):
        count = 1 if stage == _M else 2
        settings = [setting(i) for i in range(count)]
        payload = {"settings": settings, "purpose": purpose}
        units.append(UnitRow(number, candidate, stage, payload, 1.0, end - 1.0, end))
        if values == "crashed":
            errors = ({"error": "WorkerDied: <u>killed</u> by signal 9"},)
            results.append(ResultRow(number, "crashed", errors, 1.0, worker, 3))
        elif values is not None:
            assert not isinstance(values, str)
            made = tuple(record(stage, value, i) for i, value in enumerate(values))
            results.append(ResultRow(number, "ok", made, 5.0 * count, worker, 1))
    return units, results


def write(
    directory: Path,
    meta: Mapping[str, str] = META,
    *,
    candidates: Sequence[CandidateRow] = CANDIDATES,
    units: Sequence[UnitRow] | None = None,
    results: Sequence[ResultRow] | None = None,
    events: Sequence[str] = ("launched",),
) -> Path:
    """The run in `directory`, as it stands at the top of this file unless told otherwise."""
    made = rows()
    happened = [EventRow(kind, {}, 1.8e9 + i) for i, kind in enumerate(events)]
    with Journal.create(directory, meta) as journal:
        journal.write(
            candidates,
            made[0] if units is None else units,
            made[1] if results is None else results,
            happened,
        )
    return directory


def launched(directory: Path) -> Path:
    """A run that has only just begun."""
    return write(directory, candidates=(), units=(), results=())
