"""Kills a running search again and again, and checks that nothing acknowledged is lost.

    python tests/benchmarks/chaos.py /tmp/chaos 50

One search runs undisturbed. Then the same search runs on two Ray workers and is killed with SIGKILL
at random moments: its driver, a worker, the raylet (Ray's node) or the GCS (Ray's head) of its
private Ray. Whenever its driver is gone it is resumed, and when a search ends before all kills are
spent, another begins. At the end of each

* every result that had been seen in the journal is there, unchanged, and so is every proposal;
* no unit has two results, none is missing;
* the leaderboard is the same, byte for byte, as that of the undisturbed run, and so are all
  proposals and all results but for their times;
* SQLite finds the file intact.

Prints the kills by kind and a verdict. Exit status 1 on any loss. The whole takes about ten minutes
on two cores: a driver starts anew in five seconds, and one whose GCS is gone is ended by Ray after
a minute. Linux only: it looks for the processes of a search under /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from processes import descendants, is_alive, kill  # noqa: E402

from reports import collect  # noqa: E402
from search.errors import SearchError  # noqa: E402
from search.journal import FILE, Journal  # noqa: E402

CONFIG = Path(__file__).parent / "chaos.yaml"
#: Of 50 kills so many are of each kind.
KINDS = {"driver": 18, "worker": 22, "raylet": 8, "gcs": 2}
MOST_RESULTS = 6  #: that are awaited before the next kill
LONGEST_DELAY = 0.6  #: seconds after that
PATIENCE = 150.0  #: seconds without a result after which a driver counts as hung
POLL = 0.1


@dataclass
class Ledger:
    """What was seen in the journal of a run: digests of its rows, by table and id."""

    seen: dict[str, dict[int, str]] = field(
        default_factory=lambda: {"candidates": {}, "units": {}, "results": {}}
    )
    losses: list[str] = field(default_factory=list)

    def look(self, run: Path) -> int:
        """Compare with what was there before, and remember what is new; how many results."""
        rows = _rows(run)
        for table, before in self.seen.items():
            for number, digest in before.items():
                if number not in rows[table]:
                    self.losses.append(f"{run.name}: row {number} of {table} is gone")
                elif rows[table][number] != digest:
                    self.losses.append(f"{run.name}: row {number} of {table} has changed")
        self.seen = rows
        return len(rows["results"])


@dataclass
class Tally:
    """Kills by kind, and what came of them."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)  # results, at the moment of a kill
    resumed: Counter[str] = field(default_factory=Counter)  # as the driver had ended
    hung: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)  # from the kill to the next result


class Search:
    """A search in processes of its own."""

    def __init__(self, run: Path, candidates: int) -> None:
        self.run, self.log, self.candidates = run, run.with_suffix(".log"), candidates
        self.started: subprocess.Popen[bytes] | None = None
        self.born: dict[int, str] = {}  # every process that it ever had, with the time of its start

    def start(self) -> None:
        words = ["resume", str(self.run)]
        if not (self.run / FILE).exists():
            words = ["launch", str(CONFIG), "--run", str(self.run)]
            words += ["--set", f"search.candidates={self.candidates}"]
        with self.log.open("ab") as log:
            self.started = subprocess.Popen(
                [sys.executable, "-m", "search.cli", *words, "--workers", "2"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def driver(self) -> subprocess.Popen[bytes]:
        """The last one that was started."""
        assert self.started is not None, "no driver has been started"
        return self.started

    def victims(self, kind: str) -> list[int]:
        """The processes of that kind now."""
        if kind == "driver":
            return [self.driver.pid]
        names = {"raylet": "raylet", "gcs": "gcs_server"}
        found = descendants(self.driver.pid)
        self.born |= {process.pid: process.started for process in found}
        if kind in names:
            return [process.pid for process in found if process.program == names[kind]]
        actors = [p for p in found if p.title.startswith("ray::")]
        return [p.pid for p in actors if not p.title.startswith("ray::IDLE")]

    def clear(self) -> None:
        """End what is left of it; Ray's agents outlive their driver by a minute."""
        self.driver.kill()
        self.driver.wait()
        for pid, started in self.born.items():
            if is_alive(pid, started):
                kill(pid)


def main() -> int:
    options = _options()
    options.runs.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    deck = _deck(options.kills, rng)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through what clears up
    undisturbed = Search(options.runs / "undisturbed", options.candidates)
    begin = time.monotonic()
    undisturbed.start()
    try:
        if undisturbed.driver.wait() != 0:
            print(f"the undisturbed search has failed, see {undisturbed.log}", file=sys.stderr)
            return 1
    finally:
        undisturbed.clear()
    expected = _outcome(undisturbed.run)
    print(f"undisturbed: {expected['results']} results, {time.monotonic() - begin:.0f} s")
    tally, begin = Tally(), time.monotonic()
    losses: list[str] = []
    number = 0
    while deck and not losses:
        number += 1
        run = options.runs / f"disturbed-{number}"
        search = Search(run, options.candidates)
        try:
            losses += _disturb(search, deck, rng, tally)
        finally:
            search.clear()
        losses += _differences(run, expected)
        print(f"{run.name}: ended, {sum(tally.kills.values())} kills so far", flush=True)
    _report(tally, number, time.monotonic() - begin)
    for loss in losses:
        print(f"LOST: {loss}")
    print("verdict:", f"{len(losses)} losses" if losses else "nothing was lost, nothing differs")
    return 1 if losses else 0


def _options() -> argparse.Namespace:
    head, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="an empty folder for the runs")
    parser.add_argument("kills", type=int, nargs="?", default=50, help="how many (50)")
    parser.add_argument("--candidates", type=int, default=80, help="of each search (80)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (0)")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("kills: expected at least 1")
    if options.candidates < 1:
        parser.error("--candidates: expected at least 1")
    if options.runs.is_dir() and any(options.runs.iterdir()):
        parser.error(f"{options.runs} is not empty")
    return options


def _deck(kills: int, rng: random.Random) -> list[str]:
    """The kinds of all kills in the order in which they come, in the shares of `KINDS`."""
    cards = [kind for kind, count in KINDS.items() for _ in range(count)]
    rng.shuffle(cards)
    if kills < len(KINDS) * 2:  # a quick try should see the kinds in turn
        cards = list(KINDS)
    return [cards[i % len(cards)] for i in range(kills)]


def _disturb(search: Search, deck: list[str], rng: random.Random, tally: Tally) -> list[str]:
    """One run, from its launch to its end; takes kills off the deck."""
    ledger, results, since = Ledger(), 0, time.monotonic()  # `since` the last result, or kill
    blamed = awaited = ""  # the kill that ends this driver, if one does; one without a result since
    due = _due(results, rng)
    search.start()
    while True:
        time.sleep(POLL)
        now, seen, status = time.monotonic(), ledger.look(search.run), search.driver.poll()
        if seen > results:
            if awaited:
                tally.seconds[awaited] = tally.seconds.get(awaited, 0.0) + now - since
            awaited, results, since = "", seen, now
        if status == 0:
            return ledger.losses
        if status is not None:
            if not blamed:
                why = f"{search.run.name}: its driver ended with {status} for no reason"
                return [*ledger.losses, why]
            tally.resumed[blamed] += 1
            blamed = ""
            search.start()
        elif now - since > PATIENCE:
            tally.hung[blamed or "nothing"] += 1
            blamed = blamed or "nothing"
            search.driver.kill()
        elif deck and seen >= due[0] and awaited in ("", "driver"):
            time.sleep(due[1])
            results = ledger.look(search.run)
            victims = search.victims(deck[-1])
            if victims and search.driver.poll() is None:
                kill(rng.choice(victims))
                awaited = deck.pop()
                # Without its GCS a driver ends, but a minute later.
                blamed = blamed if blamed == "gcs" and awaited != "driver" else awaited
                tally.kills[awaited] += 1
                tally.acknowledged[awaited] += results
                due, since = _due(results, rng), time.monotonic()


def _due(results: int, rng: random.Random) -> tuple[int, float]:
    """When to kill next: at so many results, and so many seconds later."""
    return results + rng.randint(0, MOST_RESULTS), rng.uniform(0, LONGEST_DELAY)


# -- what a journal holds


def _rows(run: Path) -> dict[str, dict[int, str]]:
    """A digest of every row, by table and id; nothing before there is a journal."""
    if not (run / FILE).exists():
        return {"candidates": {}, "units": {}, "results": {}}
    with Journal.read(run) as journal:
        return {
            "candidates": {row.id: _digest(vars(row)) for row in journal.candidates()},
            "units": {row.id: _digest(vars(row)) for row in journal.units()},
            "results": {row.unit: _digest(vars(row)) for row in journal.results()},
        }


def _outcome(run: Path) -> dict[str, Any]:
    """Everything that a run decided and found, without who did it and how long it took."""
    with Journal.read(run) as journal:
        results = [(row.unit, row.status, _timeless(row.records)) for row in journal.results()]
        return {
            "candidates": _digest([vars(row) for row in journal.candidates()]),
            "units": _digest([vars(row) for row in journal.units()]),
            "results": len(results),
            "trained": _digest(results),
            "leaderboard": collect.leaderboard_text(collect.read(run)),
        }


def _differences(run: Path, expected: dict[str, Any]) -> list[str]:
    """What is wrong with a run that has ended."""
    try:
        found = _outcome(run)
    except SearchError as error:
        return [f"{run.name}: {error}"]
    wrong = [f"{name} differ from the undisturbed run's" for name in found
             if found[name] != expected[name]]  # fmt: skip
    with closing(sqlite3.connect(run / FILE)) as database:
        intact = database.execute("PRAGMA integrity_check").fetchall()
        twice = database.execute(
            "SELECT unit FROM results GROUP BY unit HAVING count(*) > 1"
        ).fetchall()
        missing = database.execute(
            "SELECT id FROM units WHERE id NOT IN (SELECT unit FROM results)"
        ).fetchall()
    wrong += [] if intact == [("ok",)] else [f"the file is damaged: {intact[0][0]}"]
    wrong += [f"unit {unit} has two results" for (unit,) in twice]
    wrong += [f"unit {unit} has no result" for (unit,) in missing]
    return [f"{run.name}: {what}" for what in wrong]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _timeless(value: Any) -> Any:
    """A copy without the seconds that things took."""
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name != "seconds"}
    return [_timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def _report(tally: Tally, runs: int, seconds: float) -> None:
    head = ["kills", "", "results kept", "drivers resumed", "hung", "s to the next result"]
    print("{:8} {:>6} {:>14} {:>17} {:>6} {:>22}".format(*head))
    for kind in KINDS:
        kills = tally.kills[kind]
        if kills:
            print(
                f"{kind:8} {kills:6} {tally.acknowledged[kind]:14} {tally.resumed[kind]:17} "
                f"{tally.hung[kind]:6} {tally.seconds.get(kind, 0.0) / kills:22.1f}"
            )
    print(f"{sum(tally.kills.values())} kills in {runs} runs, {seconds:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
