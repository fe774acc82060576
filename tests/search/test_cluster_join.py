"""`--address`: a cluster that runs already, whose nodes do not have this package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cellgraph
from search.journal import Journal

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


def test_the_commands_of_the_readme(tmp_path: Path):
    """A head and two nodes on this machine, a search on them, and nothing left of either."""
    (block,) = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert block.count("ray start") == 1
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need a short path
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    # What others on this machine may use at the same time is replaced, and the networks are small.
    script = block.replace("6399", str(port)).replace("/tmp/ray-", f"{folder}/")
    small = [f"tasks.{i}.{k}" for i in range(3) for k in ("params=[4000]", "rungs=[]")]
    small += [f"tasks.{i}.{k}" for i in range(3) for k in ("eval_every=20", "steps=40")]
    script = script.replace("--run runs", " ".join(f"--set {s}" for s in small) + " --run runs")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    log = tmp_path / "log"
    try:
        with log.open("w") as output:
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=tmp_path,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=300,
            )
    finally:
        left = _running_in(folder)
        for process in left:
            os.kill(process, signal.SIGKILL)
    told = log.read_text()
    assert "cluster: best of" in told, told
    assert f"report: {Path('runs') / 'cluster' / 'report.html'}" in told
    assert done.returncode == 0, told
    assert left == []
    folder.rmdir()  # which is empty
    with Journal.read(tmp_path / "runs" / "cluster") as journal:
        workers = {result.worker for result in journal.results()}
    assert len(workers) == 2


def _running_in(folder: Path) -> list[int]:
    """The processes whose command line speaks of `folder`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if str(folder).encode() in file.read_bytes() and int(file.parent.name) != os.getpid():
                found.append(int(file.parent.name))
    return found
