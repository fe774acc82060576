"""A search without training: results drawn from a hash, executors that finish in any order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cellgraph as cg
from search import launch
from search.algorithms import Proposal, Work
from search.algorithms.funnelled import Funnelled
from search.archive import Architecture
from search.config import Config
from search.executor import Executor, Outcome
from search.journal import Journal, ResultRow, UnitRow
from search.loop import Loop, Observer
from search.progress import Silent


def config(**search: Any) -> Config:
    """A small search over tasks that need no data."""
    return Config.from_dict(
        {
            "name": "fake",
            "virtual_workers": 4,
            "search": {
                "candidates": 40,
                "pool": 6,
                "seed_settings": 6,
                "settings": 3,
                "mutation": {"edits": [1, 3]},
                **search,
            },
            "filter": {"steps": 10, "eval_every": 5, "params": [2000], "threshold": 0.5},
            "tasks": [
                {"task": "arithmetic", "steps": 10, "eval_every": 5, "params": [2000, 4000]},
                {"task": "xml", "steps": 20, "eval_every": 5, "params": [2000]},
            ],
        }
    )


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on the text of `parts` alone."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def evaluate(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What `search.work.Evaluator` returns, without training: one setting in ten diverges."""
    key = cg.parse(payload["cell"]).key()
    records = []
    for setting in payload["settings"]:
        luck = fraction(key, payload["stage"], sorted(setting.items()))
        status = "diverged" if luck < 0.1 else "ok"
        metrics = {"accuracy": luck, "loss": 1.0 - luck} if status == "ok" else {}
        reached = [luck * r["steps"] / (r["steps"] + 5) for r in payload["rungs"]]
        record = {"setting": setting, "status": status, "metrics": metrics, "at_rungs": reached}
        records.append({**record, "curve": []})
    return {"records": records}


class Shuffled:
    """An executor whose units finish in a random order, several at a time; dies when told to."""

    workers = 3

    def __init__(self, seed: int, die_after: int | None = None) -> None:
        self.rng = random.Random(seed)
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.left = die_after
        self.trained: list[int] = []

    def submit(self, unit: int, payload: dict[str, Any]) -> None:
        self.pending.append((unit, payload))

    def wait(self, timeout: float | None) -> list[Outcome]:
        if self.left is not None:
            if self.left == 0:
                raise ConnectionError("killed")
            self.left -= 1
        self.rng.shuffle(self.pending)
        count = self.rng.randint(0, min(3, len(self.pending)))
        finished, self.pending = self.pending[:count], self.pending[count:]
        self.trained += [unit for unit, _ in finished]
        return [Outcome(u, "ok", evaluate(p), None, 0.0, "fake", 1) for u, p in finished]

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        return []

    def drain(self) -> None:
        """One of those that wait is at work."""
        self.pending = self.pending[:1]

    def close(self) -> None: ...


@dataclass
class Witness:
    """An observer that remembers which results it was shown."""

    shown: list[int] = field(default_factory=list)

    def consumed(self, unit: UnitRow, work: Work, result: ResultRow, replayed: bool) -> None:
        self.shown.append(unit.id)

    def waiting(self) -> None: ...


def run(
    directory: Path,
    executor: Executor | None,
    made: Config | None = None,
    observer: Observer | None = None,
) -> tuple[Loop, bool]:
    """Start, or carry on, the search in `directory`; `executor=None` checks it draw by draw.

    Returns the loop and what its `run` returned: whether the search came to its end.
    """
    ready = launch.plan(made or config())
    begin = (directory / "journal.sqlite").exists()
    with Journal.open(directory) if begin else Journal.create(directory, {}) as journal:
        check = executor is None
        algorithm = ready.algorithm() if check else ready.algorithm(journal.recall())
        virtual = ready.config.virtual_workers
        loop = Loop(algorithm, journal, executor, virtual, observer or Silent(), verify=check)
        return loop, loop.run()


def architecture(algorithm: Funnelled, name: str) -> Architecture:
    """A cell of the zoo, as if it had been proposed."""
    cell = cg.load(name)
    made = Architecture(algorithm.proposals, cell.key(), cell)
    algorithm._enter(Proposal(algorithm.proposals, made, "mutation", (0,)))
    return made


def ledger(directory: Path) -> tuple[Any, ...]:
    """Everything a run decided and found, without who did it when."""
    with Journal.read(directory) as journal:
        results = [(r.unit, r.status, r.records) for r in journal.results()]
        return journal.candidates(), journal.units(), results
