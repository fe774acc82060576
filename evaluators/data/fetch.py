"""Downloading the public files, each checked against the catalogue before it gets its name.

Lives here: the download. Must not live here: addresses and checksums (catalogue), file formats.
Nothing is opened or unpacked here; what arrives is bytes until its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from evaluators.data import places
from evaluators.data.catalogue import RemoteFile, bundle
from evaluators.errors import DataError

MIRROR_VARIABLE = "CELLSEARCH_MIRROR"
TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 16

Progress = Callable[[str, int, int], None]


def fetch(
    name: str,
    destination: Path | str | None = None,
    progress: Progress | None = None,
    mirror: str | None = None,
) -> list[Path]:
    """Downloads what a bundle ("ptb", "nottingham", …) or a data set needs; returns the files.

    destination: the data directory to put them under; without it $CELLSEARCH_DATA when set, else
        the cache directory: the places that `load` searches.
    progress: called with (path, bytes so far, bytes in all) while a file arrives.
    mirror: a base address that serves the same paths ("ptb/ptb.train.txt"), instead of the public
        ones; also $CELLSEARCH_MIRROR. Checksums hold there too.

    Files that are there and right are left alone; wrong ones are replaced. Raises DataError, and
    leaves no partial file, when there is no network, when the server refuses, and when what arrives
    is cut short or is not what it should be.
    """
    _, files = bundle(name)
    if destination is None:
        root = places.data_directory() or places.cache_directory()
    else:
        root = places.expanded("the destination", destination)
    mirror = mirror or os.environ.get(MIRROR_VARIABLE) or None
    return [_fetch_one(file, root, mirror, progress) for file in files]


def _fetch_one(file: RemoteFile, root: Path, mirror: str | None, progress: Progress | None) -> Path:
    target = root / file.path
    if _is_right(target, file):
        return target
    address = f"{mirror.rstrip('/')}/{file.path}" if mirror else file.address
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise DataError(
            f"cannot write to {target.parent} ({error.strerror}); name another directory"
        ) from error
    try:
        with os.fdopen(handle, "wb") as out:
            _download(address, file, out, progress)
        os.chmod(name, 0o644)  # mkstemp makes it private; a data directory is shared
        os.replace(name, target)
    except OSError as error:
        raise DataError(f"cannot write {target} ({error.strerror})") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    return target


def _is_right(target: Path, file: RemoteFile) -> bool:
    try:
        if not target.is_file() or target.stat().st_size != file.size:
            return False
        return hashlib.sha256(target.read_bytes()).hexdigest() == file.sha256
    except OSError:  # it can perhaps be replaced; if not, writing says why
        return False


def _download(address: str, file: RemoteFile, out: IO[bytes], progress: Progress | None) -> None:
    digest, received = hashlib.sha256(), 0
    for block in _blocks(address, file):
        received += len(block)
        if received > file.size:
            raise DataError(f"{address}: longer than the {file.size} bytes it should have")
        digest.update(block)
        out.write(block)
        if progress is not None:
            progress(file.path, received, file.size)
    if received != file.size:
        raise DataError(f"{address}: cut short, {received} of {file.size} bytes arrived; try again")
    if digest.hexdigest() != file.sha256:
        raise DataError(
            f"{address}: not the expected file, SHA-256 {digest.hexdigest()} "
            f"where {file.sha256} was expected; nothing was kept"
        )


def _blocks(address: str, file: RemoteFile) -> Iterator[bytes]:
    """The bytes of an address as they come; whatever the network does wrong is a DataError."""
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "cellsearch"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            # read(n) ends quietly when the connection does: the caller counts.
            while block := answer.read(_BLOCK):
                yield block
    except urllib.error.HTTPError as error:
        raise DataError(f"{address}: the server answers {error.code} {error.reason}") from error
    except OSError as error:  # URLError, timeouts, resets, TLS
        host = urllib.parse.urlsplit(address).hostname or address
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"cannot reach {host} ({reason}): is there a network? Or copy the file by hand from "
            f"{file.address} to {file.path} under ${places.DATA_VARIABLE}"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise DataError(f"{address}: not a usable address or answer ({error})") from error
