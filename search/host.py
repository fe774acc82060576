"""This machine as a process of ours sees it: cores, memory, threads, environment. Knows no Ray."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

# One thread each: as many workers as cores, and results that do not depend on a thread count.
# The libraries read these when they are loaded, so they have to stand when a process starts.
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "BLIS")
} | {"VECLIB_MAXIMUM_THREADS": "1"}

# The share of a machine's memory that its workers may fill together.
_SHARE = 0.8
# A worker with torch loaded has about 0.4 GiB; with less than this it could do nothing.
_LEAST = 1 << 30


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """The bytes of memory that this process may use: the machine's, or its container's."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups 2 and 1
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
    return min(limits)


def limit_memory(workers: int | None = None, limit: int | None = None) -> int:
    """Let this process fail to allocate more than `limit` bytes, instead of filling the machine.

    limit: None means a fair share for each of `workers` (None: as many as there are cores).

    The limit is that of RLIMIT_DATA, private memory that can be written. So what is merely mapped
    (libraries, the object store) does not count, unlike under RLIMIT_AS; and an allocation beyond
    it fails with an exception that a process survives, where the kernel's last resort kills.

    Returns the limit.
    """
    if limit is None:
        limit = max(_LEAST, int(memory() * _SHARE / (workers or cores())))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return limit


def oom_kills() -> int:
    """How many processes the kernel has killed on this machine, ever, because memory ran out; 0
    where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These environment variables for a while, as processes that are started meanwhile see them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
