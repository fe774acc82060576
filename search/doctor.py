"""`cellsearch doctor`: does this machine have what a search needs, and if not, how to get it."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cellgraph import CellError
from cellgraph.kernels import compiler, libraries
from evaluators.errors import DataError
from search.errors import SearchError
from search.versions import installed

LEAST_DISK = 1 << 30  # bytes; the ledger of 10,000 candidates and a Ray session stay well below


@dataclass(frozen=True)
class Finding:
    """One line of the report. `missing` makes the command exit with status 2, `note` does not."""

    what: str
    state: Literal["ok", "missing", "note"]
    detail: str


def examine() -> Iterator[Finding]:
    """All findings, one after the other, since starting Ray takes seconds."""
    for check in CHECKS:
        try:
            yield from check()
        except (CellError, DataError, SearchError, OSError, ImportError) as error:
            yield Finding(check.__name__.strip("_"), "missing", str(error).splitlines()[0])


def _python() -> Iterator[Finding]:
    state: Literal["ok", "missing"] = "ok" if sys.version_info >= (3, 11) else "missing"
    yield Finding("python", state, f"{platform.python_version()}, expected at least 3.11")


def _torch() -> Iterator[Finding]:
    import torch

    import cellgraph as cg

    layer = cg.compile("lstm", 3, 4)
    y, _ = layer(torch.ones(2, 1, 3))
    y.sum().backward()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    yield Finding(
        "torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads, {device}"
    )


def _compiler() -> Iterator[Finding]:
    found = compiler.command()
    if found is None:
        detail = f"no C compiler ($CC, cc, gcc, clang); {compiler.how_to_get_one()}"
        yield Finding("compiler", "missing", detail)
        return
    with tempfile.TemporaryDirectory() as folder:  # not the cache: it is to run now
        began = time.perf_counter()
        try:
            library = compiler.build(found, {"one": "int one(void) { return 1; }"}, Path(folder))
            ctypes.CDLL(str(library)).one()
        except (compiler.CompilerError, OSError) as error:
            detail = f"{error}; {compiler.how_to_get_one()}"
            yield Finding("compiler", "missing", detail)
            return
        spent = time.perf_counter() - began
    yield Finding("compiler", "ok", f"{shlex.join(found)} builds a library in {spent:.2f} s")


def _cache() -> Iterator[Finding]:
    folder, problem = libraries.where()
    if problem is None:
        yield Finding("compiled cells", "ok", f"are kept in {folder}")
    else:
        yield Finding("compiled cells", "note", f"are built again by every process: {problem}")


def _ray() -> Iterator[Finding]:
    from search.cluster import RayExecutor

    executor = RayExecutor(_echo, workers=1, address=None, timeout=30, attempts=1)
    try:
        executor.submit(0, {"settings": [{}]})
        outcomes = executor.wait(60)
    finally:
        executor.close()
    if not outcomes or outcomes[0].status != "ok":
        yield Finding(
            "ray",
            "missing",
            f"a local worker did not answer: {outcomes[0].error if outcomes else 'silence'}",
        )
    else:
        yield Finding("ray", "ok", f"{installed('ray')}, a local worker answers")


def _echo(payload: dict[str, object]) -> dict[str, object]:
    return payload


def _data() -> Iterator[Finding]:
    from evaluators import data

    for name, row in data.names().items():
        if row["available"]:
            yield Finding(f"data {name}", "ok", row["where"])
        else:
            yield Finding(f"data {name}", "note", row["where"])


def _disk() -> Iterator[Finding]:
    for label, folder in (
        ("disk, this folder", Path.cwd()),
        ("disk, temporary files", Path(tempfile.gettempdir())),
    ):
        free = shutil.disk_usage(folder).free
        state: Literal["ok", "missing"] = (
            "ok" if free >= LEAST_DISK and os.access(folder, os.W_OK) else "missing"
        )
        yield Finding(
            label,
            state,
            f"{folder}: {free / 2**30:.1f} GiB free, expected a writable folder with 1 GiB",
        )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _compiler,
    _cache,
    _ray,
    _data,
    _disk,
)
