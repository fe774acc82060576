"""The cache of compiled libraries: what is loaded from it, what is not, and what is left in it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellgraph.kernels import compiler, libraries
from cellgraph.kernels.compiler import CompilerError, Source

REAL = os.environ.get("CC", "cc")
SOURCE = Source("add", "long add(long a, long b) { return a + b; }")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an empty cache, in a process that has loaded nothing; runs are counted."""
    counting = tmp_path / "cc"
    counting.write_text(f"#!/bin/sh\necho run >>'{tmp_path}/runs'\nexec {REAL} \"$@\"\n")
    counting.chmod(0o700)
    monkeypatch.setenv("CC", str(counting))
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(compiler._process, "loaded", {})
    monkeypatch.setattr(libraries._process, "unusable", {})
    monkeypatch.setattr(libraries._process, "own", None)
    yield tmp_path / "cache" / "kernels"
    assert not list(tmp_path.glob("**/unfinished/tmp*")), "left behind"


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], int]:
    """How often the compiler has run so far."""
    return lambda: (tmp_path / "runs").read_text().count("\n")


def works() -> bool:
    """In a process that has not loaded it yet."""
    compiler._process.loaded.clear()
    (library,) = compiler.load([SOURCE])
    return bool(library.add(20, 3) == 23)


def replace(path: Path, content: bytes) -> None:
    """Another file under the same name: this process has loaded the one that was there."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


def only(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path


def test_what_an_entry_is(folder: Path, runs: Callable[[], int]) -> None:
    old = os.umask(0)
    try:
        assert works()
    finally:
        os.umask(old)
    entry, library = only(folder, ".json"), only(folder, ".so")
    content = library.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert json.loads(entry.read_text()) == {
        "library": library.name,
        "size": len(content),
        "sha256": digest,
    }
    assert only(folder, ".c").read_text() == SOURCE.text
    assert entry.stem == only(folder, ".c").stem
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes.pop("kernels") == modes.pop("unfinished") == 0o700
    assert set(modes.values()) == {0o600}
    assert works()
    assert runs() == 1


def _entry(folder: Path, **changes: object) -> bytes:
    return json.dumps({**json.loads(only(folder, ".json").read_text()), **changes}).encode()


ENTRIES: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda f: b"",
    "cut short": lambda f: _entry(f)[:-5],
    "not UTF-8": lambda f: b"\xff\xfe" + _entry(f),
    "zeros": lambda f: bytes(200),
    "deep": lambda f: b"[" * 4000,
    "long": lambda f: _entry(f) + b" " * 5000,
    "a list": lambda f: b"[1, 2]",
    "a number": lambda f: b"7",
    "no size": lambda f: b'{"library": "' + b"0" * 32 + b'.so", "sha256": ""}',
    "another size": lambda f: _entry(f, size=10),
    "a size that is none": lambda f: _entry(f, size="10"),
    "a larger size": lambda f: _entry(f, size=1 << 40),
    "another digest": lambda f: _entry(f, sha256="0" * 64),
    "no digest": lambda f: _entry(f, sha256=None),
    "no name": lambda f: _entry(f, library=None),
    "no such library": lambda f: _entry(f, library="0" * 32 + ".so"),
    "a path": lambda f: _entry(f, library=str(f / only(f, ".so").name)),
    "a path upwards": lambda f: _entry(f, library=f"../kernels/{only(f, '.so').name}"),
    "a link by another name": lambda f: _entry(f, library=_linked(f).name),
    "NUL": lambda f: _entry(f, library=only(f, ".so").name + "\0"),
}


def _linked(folder: Path) -> Path:
    os.link(only(folder, ".so"), folder / "planted")
    return folder / "planted"


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_damaged_entry_is_built_again(
    kind: str, folder: Path, runs: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works()
    replace(only(folder, ".json"), ENTRIES[kind](folder))
    assert works()
    assert runs() == 2
    assert works()
    assert runs() == 2, "and is whole again"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:4096],
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: content + b"\0",
        lambda content: bytes(len(content)),
        None,
    ],
)
def test_a_damaged_library_is_built_again(
    damage: Callable[[bytes], bytes] | None, folder: Path, runs: Callable[[], int]
) -> None:
    assert works()
    library = only(folder, ".so")
    if damage is None:
        library.unlink()
    else:
        replace(library, damage(library.read_bytes()))
    assert works()
    assert works()
    assert runs() == 2


def test_a_whole_file_that_is_no_library(folder: Path, runs: Callable[[], int]) -> None:
    assert works()
    text, name = b"not a library", "0" * 32 + ".so"
    (folder / name).write_bytes(text)
    (folder / name).chmod(0o600)
    digest = hashlib.sha256(text).hexdigest()
    replace(only(folder, ".json"), _entry(folder, library=name, size=len(text), sha256=digest))
    assert works()
    assert runs() == 2


# --- trust ---------------------------------------------------------------------------------------


def _status(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))


def test_whom_to_trust() -> None:
    me = os.geteuid()
    assert libraries.distrust(_status(0o40700, me)) is None
    assert libraries.distrust(_status(0o40755, me)) is None
    assert libraries.distrust(_status(0o40700, me + 1)) == "belongs to another user"
    for mode in (0o40720, 0o40702, 0o41777, 0o100620):
        assert libraries.distrust(_status(mode, me)) == "can be written by others"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_not_used(
    mode: int, folder: Path, tmp_path: Path, runs: Callable[[], int]
) -> None:
    assert works()
    before = sorted(folder.iterdir())
    folder.chmod(mode)
    used, problem = libraries.where()
    assert problem == f"{folder} can be written by others"
    assert used.parent == tmp_path
    assert used.stat().st_mode & 0o777 == 0o700
    assert works()
    assert runs() == 2, "what is there was not loaded"
    assert works()
    assert runs() == 2, "the process keeps its own"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("suffix", [".json", ".so"])
@pytest.mark.parametrize("problem", ["mode", "owner"])
def test_a_file_that_others_can_write_is_not_used(
    suffix: str,
    problem: str,
    folder: Path,
    runs: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert works()
    path = only(folder, suffix)
    if problem == "mode":
        path.chmod(0o620)
    else:
        inode, honest = path.stat().st_ino, libraries.distrust
        monkeypatch.setattr(
            libraries, "distrust", lambda s: "is theirs" if s.st_ino == inode else honest(s)
        )
    assert works()
    assert works()
    assert runs() == 2


# --- no cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("/dev/null", "/dev/null/kernels cannot be used (Not a directory)"),
        ("/" + "x" * 5000, f"/{'x' * 5000}/kernels cannot be used (File name too long)"),
        (
            "~nosuchuser/cache",
            "$CELLSEARCH_CACHE: there is no home directory for '~nosuchuser/cache'",
        ),
    ],
)
def test_without_a_cache_a_process_keeps_its_own(
    place: str,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: Callable[[], int],
) -> None:
    monkeypatch.setenv("CELLSEARCH_CACHE", place)
    assert works()
    own, said = libraries.where()
    assert own.parent == tmp_path
    assert said == problem
    assert works()
    assert runs() == 1


def test_a_relative_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Callable[[], int]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLSEARCH_CACHE", "here")
    assert works()
    assert works()
    assert runs() == 1
    assert len(list(tmp_path.glob("here/kernels/*.so"))) == 1


def test_what_a_process_keeps_for_itself_goes_with_it(tmp_path: Path) -> None:
    code = f"""
import os, sys
from cellgraph.kernels import compiler, libraries
source = compiler.Source("add", {SOURCE.text!r})
compiler.load([source])
own, _ = libraries.where()
child = os.fork()
if child == 0:
    assert libraries.where()[0] != own
    assert compiler.load([source])[0].add(1, 2) == 3
    assert compiler.load([compiler.Source("other", "int a;")])
    sys.exit(5)  # runs what was registered for the end
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert list(own.glob("*.so"))
print(own)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CELLSEARCH_CACHE": "/dev/null"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path)), done.stderr
    assert not list(tmp_path.glob("cellsearch-kernels-*"))


def test_a_cache_that_can_only_be_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Callable[[], int]
) -> None:
    assert works()
    before = sorted(folder.iterdir())
    make = tempfile.mkdtemp

    def refused(prefix: str | None = None, dir: Path | None = None) -> str:
        if dir is not None and folder in dir.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    assert works()
    assert runs() == 1, "it is still read"
    (library,) = compiler.load([Source("other", "int other(void) { return 5; }")])
    assert library.other() == 5
    assert libraries.where()[1] == f"{folder} cannot be used (Read-only file system)"
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("suffix", [".c", ".json"])
def test_a_full_disk(
    suffix: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: Callable[[], int],
) -> None:
    write = Path.write_text

    def full(path: Path, text: str, encoding: str | None = None) -> int:
        if path.suffix == suffix and folder in path.parents:
            write(path, text[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", full)
    assert works()
    own, problem = libraries.where()
    assert own.parent == tmp_path
    assert problem == f"{folder} cannot be used (No space left on device)"
    assert [path.name for path in folder.iterdir()] == ["unfinished"]
    before = runs()
    assert works()
    assert runs() == before
    compiler._process.loaded.clear()
    only(own, ".json").unlink()
    folder = own  # now its disk is full as well
    with pytest.raises(CompilerError, match=r"no library: No space left on device$"):
        compiler.load([SOURCE])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_when_the_linker_writes(
    number: int, folder: Path, tmp_path: Path
) -> None:
    counting = tmp_path / "cc"
    linker = f"echo 'ld: final link failed: {os.strerror(number)}' >&2; exit 1"
    script = counting.read_text().replace(
        "\n", f'\ncase "$TMPDIR" in {folder}/*) {linker};; esac\n', 1
    )
    counting.write_text(script)
    assert works()
    assert libraries.where()[1] == f"{folder} cannot be used ({os.strerror(number)})"
    assert [path.name for path in folder.iterdir()] == ["unfinished"]


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELLSEARCH_CACHE", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(CompilerError, match=r"^no folder for libraries: No such file"):
        compiler.load([SOURCE])


@pytest.mark.parametrize(
    ("limit", "expected"), [(16, "File too large"), (5000, "File size limit exceeded")]
)
def test_a_limit_on_the_size_of_files(
    limit: int, expected: str, folder: Path, tmp_path: Path
) -> None:
    code = f"""
import resource
from cellgraph.kernels import compiler
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    compiler.load([compiler.Source("add", {SOURCE.text!r})])
except compiler.CompilerError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CC": REAL},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert expected in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["unfinished"]
    assert not list(tmp_path.glob("cellsearch-kernels-*"))


# --- many at once --------------------------------------------------------------------------------


def test_processes_build_the_same_at_once(
    folder: Path, tmp_path: Path, runs: Callable[[], int]
) -> None:
    code = f"""
import sys, time
from pathlib import Path
from cellgraph.kernels import compiler
texts = [f"int f{{i}}(void) {{{{ return {{i}}; }}}}" for i in range(4)]
sources = [compiler.Source(f"f{{i}}", text) for i, text in enumerate(texts)]
Path({str(tmp_path)!r}, "ready" + sys.argv[1]).touch()
while not Path({str(tmp_path)!r}, "go").exists():
    time.sleep(0.001)
for i in range(4):  # one by one, all together, and parts of it
    compiler._process.loaded.clear()
    (library,) = compiler.load([sources[i]])
    assert library[f"f{{i}}"]() == i
    for i, library in enumerate(compiler.load(sources)):
        assert library[f"f{{i}}"]() == i
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stderr=subprocess.PIPE, text=True
        )
        for number in range(4)
    ]
    while len(list(tmp_path.glob("ready*"))) < 4:
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    for process in started:
        _, message = process.communicate()
        assert process.returncode == 0, message
    assert len(list(folder.glob("*.json"))) == len(list(folder.glob("*.c"))) == 4
    for library in folder.glob("*.so"):
        assert hashlib.sha256(library.read_bytes()).hexdigest()[:32] == library.stem
    before = runs()
    for name in range(4):
        compiler._process.loaded.clear()
        compiler.load([Source(f"f{name}", f"int f{name}(void) {{ return {name}; }}")])
    assert runs() == before


def test_what_a_killed_process_has_left_is_swept(folder: Path, tmp_path: Path) -> None:
    (folder / "unfinished").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    for name, age in (("old", 25), ("young", 23)):
        left = folder / "unfinished" / name
        left.mkdir()
        (left / "unit.c").touch()
        os.utime(left, (time.time() - age * 3600,) * 2)
    assert works()
    assert [path.name for path in (folder / "unfinished").iterdir()] == ["young"]


def test_a_process_killed_in_the_middle_harms_nobody(
    folder: Path, tmp_path: Path, runs: Callable[[], int]
) -> None:
    code = f"""
import os, signal
from pathlib import Path
from cellgraph.kernels import compiler
replace, count = Path.replace, iter(range(10))
def dies(path, final):
    if next(count) == CALLS:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, final)
Path.replace = dies
compiler.load([compiler.Source("add", {SOURCE.text!r})])
"""
    for calls in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("CALLS", str(calls))], check=False
        )
        assert done.returncode == -9
        assert not list(folder.glob("*.json"))
    assert works()
    assert runs() == 4
    for left in (folder / "unfinished").iterdir():
        os.utime(left, (0, 0))
    replace(only(folder, ".json"), b"")
    assert works()
    assert not list((folder / "unfinished").iterdir())
