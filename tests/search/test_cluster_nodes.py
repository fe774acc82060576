"""Nodes that come and go, one of them by `kill -9`: every unit is answered, once, and alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.executor import InlineExecutor

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own, as Ray settles on tokens, or none, when it is imported.
DRIVER = """
import json, sys, time
import ray
from ray.cluster_utils import Cluster
from search.cluster import RayExecutor

def function(payload):
    import time, zlib
    time.sleep(0.05)
    return {"value": zlib.crc32(payload["cell"].encode())}

def unit(number):
    return {"cell": f"cell {number}", "settings": [{}]}

dead_within_seconds = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3,
}
small = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        **small, "num_cpus": 0, "include_dashboard": False, "_system_config": dead_within_seconds
    },
)
victim, _ = cluster.add_node(**small), cluster.add_node(**small)

outcomes, events, submitted = [], [], 0
with RayExecutor(function, address=cluster.address, timeout=30.0) as executor:
    assert executor.workers == 2, executor.workers
    give_up = time.monotonic() + 120

    def work_until(condition):
        global submitted
        while not condition():
            assert time.monotonic() < give_up, (events, len(outcomes), executor.workers)
            while submitted < len(outcomes) + 8:
                executor.submit(submitted, unit(submitted))
                submitted += 1
            outcomes.extend(executor.wait(1.0))
            events.extend(executor.events())

    def both_work():
        return len({outcome.worker for outcome in outcomes[-6:]}) == 2

    work_until(both_work)
    cluster.remove_node(victim, allow_graceful=False)
    work_until(lambda: "node_left" in dict(events) and executor.workers == 1)
    cluster.add_node(**small)
    work_until(lambda: "node_joined" in dict(events) and executor.workers == 2 and both_work())
    while more := executor.wait():
        outcomes += more
cluster.shutdown()
answers = [(o.unit, o.status, o.result, o.error) for o in outcomes]
print(json.dumps({"answers": answers, "events": events, "submitted": submitted,
                  "workers": sorted({o.worker for o in outcomes}),
                  "attempts": max(o.attempts for o in outcomes)}))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    yield made
    shutil.rmtree(made, ignore_errors=True)


def code(payload: dict[str, str]) -> dict[str, int]:
    import zlib

    return {"value": zlib.crc32(payload["cell"].encode())}


def test_a_node_is_killed_and_another_joins(folder: Path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])

    inline = InlineExecutor(code)
    for number in range(told["submitted"]):
        inline.submit(number, {"cell": f"cell {number}"})
    expected = []
    while more := inline.wait():
        expected += [[o.unit, o.status, o.result, o.error] for o in more]
    assert sorted(told["answers"]) == expected
    assert told["attempts"] <= 2

    kinds = [kind for kind, _ in told["events"]]
    assert kinds.count("node_left") == kinds.count("node_joined") == 1
    assert kinds.count("worker_lost") == 1
    (lost,) = [detail for kind, detail in told["events"] if kind == "worker_lost"]
    assert lost["reason"] == "the node of its worker was lost"
    assert len(told["workers"]) == 3
