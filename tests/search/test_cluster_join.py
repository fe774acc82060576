"""`--address`: a cluster that runs already, whose nodes do not have this package."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cellgraph

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses the address 127.0.0.2")


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node started as an administrator would, from another folder; how to reach it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    with socket.create_server(("127.0.0.2", 0)) as free:
        address = f"127.0.0.2:{free.getsockname()[1]}"
    host, port = address.split(":")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled"}
    command = [
        *(
            sys.executable,
            "-c",
            "import sys; from ray.scripts.scripts import main; sys.exit(main())",
        ),
        *("start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"),
        *("--num-cpus=1", f"--node-ip-address={host}", f"--port={port}"),
        "--object-store-memory=100000000",
    ]
    node = subprocess.Popen(
        command, cwd="/", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            assert node.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    break
            time.sleep(0.1)
        yield address, environment
    finally:
        node.terminate()
        node.wait()
        shutil.rmtree(folder, ignore_errors=True)


DRIVER = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
from search.cluster import RayExecutor

def function(payload):
    import cellgraph, search.dispatch
    return {
        "cellgraph": cellgraph.__file__,
        "search": search.dispatch.__file__,
        "threads": os.environ["OMP_NUM_THREADS"],
        "key": cellgraph.load("gru").key(),
    }

# One worker more than there is room for: it waits for a node to join.
with RayExecutor(function, workers=2, address=sys.argv[1]) as executor:
    executor.submit(0, {})
    (outcome,) = executor.wait()
    assert executor.workers == 2
print(json.dumps([outcome.status, outcome.result, outcome.error]))
"""


def test_our_packages_travel_to_the_cluster(head: tuple[str, dict[str, str]], tmp_path: Path):
    address, environment = head
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, address, str(ROOT)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    status, result, error = json.loads(done.stdout)
    assert (status, error) == ("ok", None)
    for package in ("cellgraph", "search"):
        assert "/py_modules_files/" in result[package]
    assert result["threads"] == "1"
    assert result["key"] == cellgraph.load("gru").key()
