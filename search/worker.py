"""What a worker process of a cluster does: set itself up, then run units. Knows no Ray.

The arrays that it is set up with lie in memory which all workers of a node share. They are marked
read-only, but `torch.from_numpy` ignores the mark, and a unit that writes into such a tensor would
silently change the data of every other unit (pytorch#5442). A worker therefore compares them with
their checksum when it starts and, for half a percent of its time, between units.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from search import host
from search.executor import Status, UnitFunction, attempt

#: Status, result, error and seconds of a unit.
Answer = tuple[Status, dict[str, Any] | None, str | None, float]

_SHARE_OF_CHECKS = 1 / 200


class SharedDataError(Exception):
    """The data that workers share are not what they were."""


def checksum(objects: Sequence[Any]) -> int:
    """CRC-32 of the contents of all arrays in `objects`, in place: about 1 ms per megabyte."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(objects, protocol=5, buffer_callback=buffers.append)
    code = 0
    for buffer in buffers:
        code = zlib.crc32(buffer.raw(), code)
    return code


class Worker:
    """Calls `function` on one payload after another, in a process of its own with one thread.

    workers, memory: as in `host.limit_memory`.
    expected: the `checksum` of what `prepare` will be given.
    """

    def __init__(
        self,
        function: UnitFunction,
        setup: Callable[..., None] | None,
        expected: int,
        workers: int | None,
        memory: int | None,
    ) -> None:
        import torch

        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        host.limit_memory(workers, memory)
        self._function = function
        self._setup = setup
        self._expected = expected
        self._shared: Sequence[Any] = ()
        self._check_at = 0.0

    def prepare(self, *arguments: Any) -> str:
        """Set up, once; the name of this process. Raises SharedDataError, or what `setup` does."""
        self._shared = arguments
        self._check()
        if self._setup is not None:
            self._setup(*arguments)
        return f"{socket.gethostname()}:{os.getpid()}"

    def run(self, payloads: Sequence[bytes]) -> list[Answer]:
        """What became of each unit (`attempt`). Raises SharedDataError."""
        answers = [
            attempt(self._function, pickle.loads(payload))  # noqa: S301 - our own driver's
            for payload in payloads
        ]
        if time.perf_counter() >= self._check_at:
            self._check()
        return answers

    def _check(self) -> None:
        start = time.perf_counter()
        if checksum(self._shared) != self._expected:
            raise SharedDataError("the data that the workers share have been written to")
        end = time.perf_counter()
        self._check_at = end + (end - start) / _SHARE_OF_CHECKS
