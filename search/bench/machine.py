"""What was measured on: processor, libraries, compiler."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from typing import Any

from cellgraph.kernels import compiler
from search.versions import installed


def describe() -> dict[str, Any]:
    """JSON-able. Threads are those that everything here runs on, cores those that there are."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": installed("torch"),
        "numpy": installed("numpy"),
        "compiler": _compiler(),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = [line.partition(":")[2] for line in file if line.startswith("model name")]
    except OSError:  # not Linux
        named = []
    return named[0].strip() if named else platform.processor() or platform.machine()


def _compiler() -> str | None:
    """The first line of what the compiler says of itself; its command where it says nothing."""
    found = compiler.command()
    if found is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603  # the user's own compiler
            [*found, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return shlex.join(found)
    return (done.stdout.splitlines() or [shlex.join(found)])[0]
