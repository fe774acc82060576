"""A Python that has torch and not this package, to run exported programs as their users will.

It is started when the first one is checked and serves until this process ends: the imports of torch
take longer than a check.
"""

from __future__ import annotations

import atexit
import io
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cellgraph.errors import CellError

#: Messages go both ways as eight bytes of length and what torch.save writes.
SERVER = """
import io, os, sys

sys.modules["cellgraph"] = None  # an import of it raises
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # what torch prints is no answer

import torch

torch.set_num_threads(1)
while size := sys.stdin.buffer.read(8):
    asked = io.BytesIO(sys.stdin.buffer.read(int.from_bytes(size, "big")))
    path, calls = torch.load(asked, weights_only=True)
    try:
        program = torch.export.load(path).module()
        with torch.no_grad():
            found = [program(*call) for call in calls]
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    answer = io.BytesIO()
    torch.save(found, answer)
    answers.write(answer.tell().to_bytes(8, "big") + answer.getvalue())
    answers.flush()
"""


class _TorchOnly:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0

    def ask(self, question: bytes) -> bytes:
        """One message there, one back; empty where the process ends over it."""
        with self.lock:
            process = self._running()
            assert process.stdin is not None  # noqa: S101  # for mypy: both are pipes
            assert process.stdout is not None  # noqa: S101
            try:
                process.stdin.write(len(question).to_bytes(8, "big") + question)
                process.stdin.flush()
                answer = process.stdout.read(int.from_bytes(process.stdout.read(8), "big"))
            except BrokenPipeError:
                answer = b""
            if not answer:
                _end(process, self.owner)
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        # A forked process shares the pipes of its parent, and must not use them.
        if self.process is not None and self.owner == os.getpid():
            if self.process.poll() is None:
                return self.process
            _end(self.process, self.owner)
        # -P: a file torch.py in the current folder is not torch.
        command = [sys.executable, "-P", "-c", SERVER]
        self.process = subprocess.Popen(  # noqa: S603  # our own text
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.owner = os.getpid()
        atexit.register(_end, self.process, self.owner)
        return self.process


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.communicate()  # which closes the pipes


_torch_only = _TorchOnly()


def run(path: Path, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What the program of torch.export in a file returns for each tuple of arguments. Raises
    `CellError` where it does not run."""
    question = io.BytesIO()
    torch.save((str(path.absolute()), list(calls)), question)
    answer = _torch_only.ask(question.getvalue())
    found = torch.load(io.BytesIO(answer), weights_only=True) if answer else "it ended"
    if isinstance(found, str):
        reason = found.partition("\n")[0]
        raise CellError(
            f"{path.name} does not run in a process with only torch ({reason}), "
            "expected a program of torch.export"
        )
    results: list[Any] = found
    return results
