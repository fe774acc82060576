"""Does a Ray cluster answer at an address? Asked from another process, which can be stopped."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

from search.errors import SearchError
from search.executor import last_error

# Seconds that an address may take to answer; ray.init itself would hang for minutes.
ANSWER = 30.0

_SCRIPT = (
    "import ray, sys; "
    "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"
)


def check(address: str) -> None:
    """Raise SearchError unless a cluster answers at `address` within seconds.

    ray.init itself hangs for minutes on an address that is dead or not Ray's, and cannot be
    interrupted: first see whether anything listens there, then connect from another process.
    """
    place = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+|\[[^\]]+\]):(?P<port>\d{1,5})", address)
    if place is not None:
        try:
            target = (place["host"].strip("[]"), int(place["port"]))
            socket.create_connection(target, timeout=ANSWER / 3).close()
        except (OSError, OverflowError) as error:
            raise SearchError(f"no Ray cluster at {address}: {error}") from None
    elif address != "auto":
        raise SearchError(f"address: expected auto, HOST:PORT or ray://HOST:PORT, not {address!r}")
    try:
        answer = subprocess.run(  # noqa: S603 - our own script; the address is data to it
            [sys.executable, "-c", _SCRIPT, address],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=ANSWER,
        )
    except subprocess.TimeoutExpired:
        raise SearchError(f"no Ray cluster at {address}: no answer in {ANSWER:g} s") from None
    if answer.returncode != 0:
        raise SearchError(f"no Ray cluster at {address}: {last_error(answer.stderr)}")
