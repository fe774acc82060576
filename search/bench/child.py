"""A measurement in a process of its own, with one thread and a memory that nobody else has grown.

The child reads one JSON document and prints lines of JSON: how far it is, and at last what it has
found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from search.bench.rates import ONE_THREAD
from search.errors import SearchError
from search.executor import describe

#: How far a measurement is: phase, done, total.
Say = Callable[[str, int, int], None]


def run(module: str, document: Mapping[str, Any], say: Say) -> Any:
    """What `serve` in that module answers to `document`. Raises SearchError when it fails."""
    path = os.pathsep.join(filter(None, sys.path))  # as here, whether installed or not
    with subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
        [sys.executable, "-P", "-m", module],
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us alone
    ) as process:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        try:
            with process.stdin as stdin:
                json.dump(document, stdin)
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise SearchError(str(message["error"]))
                if "answer" in message:
                    return message["answer"]
                say(message["phase"], message["done"], message["total"])
        except BaseException:
            _stop(process)
            raise
    raise SearchError(f"{module} ended with status {process.returncode} before it had answered")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()  # politely at first: it may have a Ray of its own
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


def serve(answer: Callable[[dict[str, Any], Say], Any]) -> None:
    """The child's side: answer what stands on standard input, on standard output."""
    # Whatever else prints (Ray's libraries do) goes to standard error.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(message: Mapping[str, Any]) -> None:
            print(json.dumps(message, allow_nan=False), file=out, flush=True)

        def say(phase: str, done: int, total: int) -> None:
            tell({"phase": phase, "done": done, "total": total})

        try:
            found = answer(json.load(sys.stdin), say)
        except Exception as error:  # told to the parent, which raises it
            ours = isinstance(error, SearchError)
            tell({"error": str(error) if ours else describe(error)})
        else:
            tell({"answer": found})
