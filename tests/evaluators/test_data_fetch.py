"""Downloads, against a server of our own that cuts short, tampers and refuses."""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from evaluators import data
from evaluators.data import catalogue
from evaluators.data.catalogue import RemoteFile
from evaluators.errors import DataError

FRAMES = 2000


def mat() -> bytes:
    row = np.empty((1, 1), object)
    row[0, 0] = np.random.default_rng(0).integers(2, size=(FRAMES, 88), dtype=np.uint8)
    out = io.BytesIO()
    scipy.io.savemat(out, {f"{split}data": row for split in ("train", "valid", "test")})
    return out.getvalue()


GOOD = mat()  # half a megabyte: several blocks
PATH = "polyphonic/JSB_Chorales.mat"


class Server(ThreadingHTTPServer):
    """Answers every request with `status`, `body` and, as Content-Length, `announced`."""

    daemon_threads = True
    status = 200
    body = GOOD
    announced: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        if self.server.announced is not None:
            self.send_header("Content-Length", str(self.server.announced))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CELLSEARCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    remote = RemoteFile(
        PATH, "https://x.invalid/a.mat", len(GOOD), hashlib.sha256(GOOD).hexdigest()
    )
    monkeypatch.setitem(catalogue.BUNDLES, "jsb", (remote,))
    data.forget()
    yield tmp_path
    data.forget()


def files_in(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_what_was_fetched_can_be_loaded(home: Path, server: Server) -> None:
    server.announced = len(GOOD)
    seen: list[tuple[str, int, int]] = []
    (file,) = data.fetch("jsb", progress=lambda *at: seen.append(at), mirror=server.address + "/")
    assert file == home / "data" / PATH
    assert file.read_bytes() == GOOD
    assert server.asked == [f"/{PATH}"]
    received = [at[1] for at in seen]
    assert received == sorted(received)
    assert len(received) > 2
    assert seen[-1] == (PATH, len(GOOD), len(GOOD))
    assert data.load("jsb")["train_lengths"].tolist() == [FRAMES]
    assert data.names()["jsb"]["available"]
    assert data.fetch("jsb", mirror=server.address) == [file]
    assert len(server.asked) == 1


def test_the_destination(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLSEARCH_MIRROR", server.address)
    assert data.fetch("jsb", home / "mine") == [home / "mine" / PATH]
    monkeypatch.delenv("CELLSEARCH_DATA")
    assert data.fetch("jsb") == [home / "cache" / PATH]
    assert data.load("jsb")["train_lengths"].tolist() == [FRAMES]


@pytest.mark.parametrize("announced", [None, len(GOOD)])
@pytest.mark.parametrize("kept", [0, 1, 100_000, len(GOOD) - 1])
def test_a_file_cut_short_is_not_kept(
    home: Path, server: Server, announced: int | None, kept: int
) -> None:
    server.announced, server.body = announced, GOOD[:kept]
    with pytest.raises(DataError, match=f"cut short, {kept} of {len(GOOD)} bytes") as raised:
        data.fetch("jsb", mirror=server.address)
    assert server.address in str(raised.value)
    assert "\n" not in str(raised.value)
    assert files_in(home) == []


def test_a_tampered_file_is_not_kept(home: Path, server: Server) -> None:
    server.body = GOOD[:-1] + b"!"
    with pytest.raises(DataError, match=r"not the expected file, SHA-256 .* nothing was kept"):
        data.fetch("jsb", mirror=server.address)
    assert files_in(home) == []


def test_a_longer_file_is_given_up(home: Path, server: Server) -> None:
    server.body = GOOD + b"x" * 1_000_000
    with pytest.raises(DataError, match=f"longer than the {len(GOOD)} bytes"):
        data.fetch("jsb", mirror=server.address)
    assert files_in(home) == []


def test_nothing_is_unpickled_while_it_is_fetched(home: Path, server: Server) -> None:
    server.body = pickle.dumps({"train": pytest.fail})
    with pytest.raises(DataError, match="cut short"):
        data.fetch("jsb", mirror=server.address)
    assert files_in(home) == []


def test_a_wrong_file_is_replaced_but_only_by_the_right_one(home: Path, server: Server) -> None:
    target = home / "data" / PATH
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old")
    server.body = b"bad"
    with pytest.raises(DataError):
        data.fetch("jsb", mirror=server.address)
    assert target.read_bytes() == b"old"
    assert files_in(home) == [f"data/{PATH}"]
    server.body = GOOD
    data.fetch("jsb", mirror=server.address)
    assert target.read_bytes() == GOOD
    assert files_in(home) == [f"data/{PATH}"]


def test_a_refusal_of_the_server_is_quoted(home: Path, server: Server) -> None:
    server.status = 404
    with pytest.raises(DataError, match="the server answers 404 Not Found"):
        data.fetch("jsb", mirror=server.address)
    assert files_in(home) == []


def test_no_network_says_so_and_how_to_do_without(home: Path, server: Server) -> None:
    server.server_close()  # the port is free: nobody answers
    with pytest.raises(DataError) as raised:
        data.fetch("jsb", mirror=server.address)
    said = str(raised.value)
    assert "cannot reach 127.0.0.1" in said
    assert "is there a network?" in said
    assert "https://x.invalid/a.mat" in said
    assert PATH in said
    assert "\n" not in said
    assert files_in(home) == []


@pytest.mark.parametrize("mirror", ["nonsense", "http://[", "gopher://127.0.0.1/"])
def test_an_address_that_is_none(home: Path, mirror: str) -> None:
    with pytest.raises(DataError):
        data.fetch("jsb", mirror=mirror)
    assert files_in(home) == []


def test_a_place_that_cannot_be_written(home: Path, server: Server) -> None:
    (home / "data").write_text("a file where the directory should be")
    with pytest.raises(DataError, match=r"cannot write to .*name another directory"):
        data.fetch("jsb", mirror=server.address)
    assert server.asked == []


def test_what_can_be_fetched() -> None:
    with pytest.raises(DataError, match="unknown data to fetch: 'notingham'; did you mean 'nott"):
        data.fetch("notingham")
    with pytest.raises(DataError, match="chorales needs no download"):
        data.fetch("chorales")
    assert catalogue.bundle("ptb_char") == catalogue.bundle("ptb")
    for name, remotes in catalogue.BUNDLES.items():
        for remote in remotes:
            assert remote.address.startswith("https://"), name
            assert len(remote.sha256) == 64, name
            assert not Path(remote.path).is_absolute()
            assert ".." not in remote.path
