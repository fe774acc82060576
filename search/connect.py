"""Connecting to Ray: one of our own on this machine, or a cluster that runs already.

Is handed Ray, or the function that imports it, which is done in one file only: `search.cluster`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import site
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from search import address as addresses
from search import host
from search.errors import SearchError
from search.executor import describe
from search.storage import scratch

# A token for the processes of our own Ray, or it would write one into the home directory. Ray reads
# it once per process, so every Ray that this process starts gets the same.
_TOKEN = secrets.token_hex(32)

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("cellgraph", "evaluators", "search")

# FOLDER/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store is the path of a socket
# and as such may have 107 characters.
_LONGEST_FOLDER = 107 - 68


def start(import_ray: Callable[[], Any], workers: int, cleanup: contextlib.ExitStack) -> Any:
    """A private Ray on this machine with a core for each worker, reachable from this machine only.

    What it leaves on disk and in the environment is put on `cleanup`.
    """
    folder = cleanup.enter_context(scratch("cellsearch-ray-", _LONGEST_FOLDER))
    paths = list(filter(None, [os.environ.get("PYTHONPATH")]))
    if _ROOT not in map(Path, [*site.getsitepackages(), site.getusersitepackages()]):
        paths.insert(0, str(_ROOT))  # a checkout: workers find us wherever the driver runs
    variables = host.ONE_THREAD | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_TMPDIR": str(folder),  # Ray never deletes its session folders
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        # Despite its name: on Linux too, 0 binds everything to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Else the memory of Ray's server grows with every call (45 to 310 MB in 80,000 calls).
        "RAY_task_events_report_interval_ms": "0",
        # Ray would kill workers when *other* programs fill the memory.
        "RAY_memory_monitor_refresh_ms": "0",
    }
    with host.environment(variables):
        ray = import_ray()
        _init(
            ray,
            address="local",  # never the default, which may hang on the remains of another Ray
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=200 << 20,  # else 30 % of the memory; what exceeds it goes to disk
        )
    return ray


def join(import_ray: Callable[[], Any], address: str) -> Any:
    """The cluster at an address, our packages sent along."""
    # Before the import: Ray settles on a token when it is imported, and a local Ray that this
    # process may start after an address has not answered needs ours.
    addresses.check(address)
    ray = import_ray()
    modules = [str(_ROOT / name) for name in _PACKAGES if (_ROOT / name).is_dir()]
    _init(ray, address=address, runtime_env={"py_modules": modules, "env_vars": host.ONE_THREAD})
    return ray


def _init(ray: Any, **options: Any) -> None:
    """ray.init, silent, without leaving its handler of SIGTERM in place of somebody's own."""
    if ray.is_initialized():
        raise SearchError("Ray is in use in this process already")
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **options)
    except Exception as error:
        raise SearchError(f"Ray does not start: {describe(error)}") from error
    finally:
        # Ray's own exits through `atexit`, which is better than what happens by default.
        if here and before not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, before)
    # Ray prints the deaths of workers on standard output, log_to_driver or not (ray#28216).
    private: Any = getattr(ray, "_private", None)
    if hasattr(private, "worker"):
        private.worker._worker_logs_enabled = False
