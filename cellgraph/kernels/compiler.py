"""The system's C compiler: finding it, and turning C into loaded libraries.

    library, = compiler.load([compiler.Source("sum", "long sum(long a, long b) { return a + b; }")])

Lives here: the command, its flags, one run of it, and by what a library is known again. Must not
live here: what the C says, and how libraries are kept (libraries.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellgraph.kernels import libraries

TIMEOUT = 30.0  # seconds for one run of the compiler; an ordinary cell takes a tenth of one
#: How hard the compiler tries. Generated code is vectors already: what -O2 adds is 2 % of its
#: speed and a quarter of the time to compile it; contraction to fused operations is worth having.
THOROUGH, QUICK = ("-O2",), ("-O1", "-fexpensive-optimizations")
FLAGS = (
    *("-std=gnu11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"),
    "-ffp-contract=fast",
    "-pipe",  # the assembler runs beside the compiler: 2 ms
    "-nostartfiles",  # there is nothing to do when the library is loaded: 1 ms
)
#: Which make the compiler use all that this processor can; the first that it does not refuse.
NATIVE = (("-march=native",), ("-mcpu=native",), ())
HEADERS = Path(__file__).resolve().parent


class CompilerError(RuntimeError):
    """There is no library: which command, and what happened, in one line."""


@dataclass(frozen=True)
class Source:
    """One C text to be built.

    name: how its entry in the cache begins: 1 to 80 of A-Z a-z 0-9 _ and -; ValueError otherwise.
    text: the C, or a function that makes it, called only where it has to be compiled.
    identity: what tells it from other sources, where that is not its text: two texts with one
        identity are the same code.
    optimisation: THOROUGH, or QUICK for what is compiled while somebody waits.
    """

    name: str
    text: str | Callable[[], str]
    identity: str = ""
    optimisation: tuple[str, ...] = THOROUGH

    def read(self) -> str:
        """The text."""
        return self.text if isinstance(self.text, str) else self.text()

    def __post_init__(self) -> None:
        # It becomes part of a path.
        if not isinstance(self.name, str) or not re.fullmatch("[A-Za-z0-9_-]{1,80}", self.name):
            shown = repr(self.name)[:100]
            raise ValueError(f"name of a source {shown}, expected 1 to 80 letters, digits, _ and -")


@dataclass
class _Process:
    """What this process has loaded and found out, guarded by the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    loaded: dict[str, ctypes.CDLL] = field(default_factory=dict)
    native: dict[tuple[str, ...], int] = field(default_factory=dict)  # command: index of NATIVE

    def after_fork(self) -> None:
        self.lock = threading.Lock()  # another thread of the parent may have held it


_process = _Process()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_process.after_fork)


def command() -> tuple[str, ...] | None:
    """$CC, which may hold arguments, else cc, gcc or clang, else Zig's; None if there is none.

    The program is an absolute path.
    """
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # an open quotation mark
        named = []
    for words in (named, ["cc"], ["gcc"], ["clang"]):
        program = shutil.which(words[0]) if words else None
        if program:
            return os.path.abspath(program), *words[1:]
    return (sys.executable, "-m", "ziglang", "cc") if sys.executable and _zig() else None


def _zig() -> Path | None:
    """The program inside the package ziglang, which is on no PATH."""
    found = importlib.util.find_spec("ziglang")
    return Path(found.origin).with_name("zig") if found and found.origin else None


def how_to_get_one() -> str:
    """What to do on a machine without a compiler."""
    return "install gcc or clang from your system's packages, or run: pip install ziglang"


def load(sources: Sequence[Source], *, double: bool = False) -> list[ctypes.CDLL]:
    """One library per source (several may be one), from the cache where it has them.

    All that are missing are compiled in one run (one for each optimisation), as one translation
    unit: their symbols must not clash. double: real numbers are double, not float. Raises
    CompilerError.
    """
    found = command()
    if found is None:
        raise CompilerError(f"no C compiler found; {how_to_get_one()}")
    means = [*_means(found), _headers(), _cpu(), "double" if double else "float"]
    stems = [_stem(source, means) for source in sources]
    with _process.lock:
        missing: dict[tuple[str, ...], dict[str, str]] = {}
        for stem, source in zip(stems, sources, strict=True):
            if stem not in _process.loaded and not _fetch(stem):
                missing.setdefault(source.optimisation, {})[stem] = source.read()
        for optimisation, texts in missing.items():
            library = _built(found, texts, [*optimisation, *_defines(double)])
            _process.loaded.update(dict.fromkeys(texts, library))
        return [_process.loaded[stem] for stem in stems]


def _fetch(stem: str) -> bool:
    """Load an entry of the cache. Is there one?"""
    try:
        library = libraries.find(libraries.where()[0], stem)
    except OSError as error:
        raise CompilerError(f"no folder for libraries: {libraries.reason(error)}") from error
    if library is not None:
        _process.loaded[stem] = library
    return library is not None


def _defines(double: bool) -> list[str]:
    return ["-DREAL_DOUBLE"] if double else []


def _built(found: tuple[str, ...], texts: dict[str, str], flags: Sequence[str]) -> ctypes.CDLL:
    """Compile, keep and load. Where the cache cannot be written, or nothing in it be loaded, the
    process goes on in a folder of its own."""
    try:
        try:
            return _built_in(libraries.where()[0], found, texts, flags)
        except OSError as error:
            libraries.leave(error)
            return _built_in(libraries.where()[0], found, texts, flags)
    except OSError as error:
        raise CompilerError(
            f"{shlex.join(found)}: no library: {libraries.reason(error)}"
        ) from error


def _built_in(
    folder: Path, found: tuple[str, ...], texts: dict[str, str], flags: Sequence[str]
) -> ctypes.CDLL:
    with libraries.workshop(folder) as into:
        return libraries.keep(build(found, texts, into, flags), texts, folder)


def build(
    found: tuple[str, ...], texts: Mapping[str, str], into: Path, flags: Sequence[str] = THOROUGH
) -> Path:
    """Compile all texts, as one translation unit, into one shared library: its path.

    found: the compiler, of `command`.
    texts: by the name (without .c) that stands before an error in them.
    flags: besides those that every run has.
    into: a folder, for all that is written, the compiler's own temporary files included.

    Raises CompilerError, and OSError when the folder cannot be written.
    """
    unit, library = into / "unit.c", into / "library.so"
    parts = [f'#line 1 "{name}.c"\n{text}\n' for name, text in texts.items()]
    unit.write_text("".join(parts), encoding="utf-8")
    shown = shlex.join(found)
    for choice in range(_process.native.get(found, 0), len(NATIVE)):
        words = [*found, *flags, *NATIVE[choice], *FLAGS, f"-I{HEADERS}"]
        status, message = _run([*words, "-o", str(library), str(unit), "-lm"], shown, into)
        if status == 0:
            if not library.is_file():
                raise CompilerError(f"{shown}: exit status 0, but it has left no library")
            _process.native[found] = choice
            return library
        for number in (errno.ENOSPC, errno.EDQUOT):  # of the linker, as a rule
            if os.strerror(number) in message:
                raise OSError(number, os.strerror(number))
        if "native" not in message:  # who refuses a flag names it
            break
    raise CompilerError(_failure(shown, status, message))


def run(found: tuple[str, ...], words: Sequence[str], into: Path) -> None:
    """One run of the compiler with exactly these arguments; `into` as for `build`.

    Raises CompilerError.
    """
    shown = shlex.join(found)
    status, message = _run([*found, *words], shown, into)
    if status:
        raise CompilerError(_failure(shown, status, message))


def _failure(shown: str, status: int, message: str) -> str:
    what = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    return f"{shown}: {what}: {_first_error(message)}"


def _run(words: list[str], shown: str, into: Path) -> tuple[int, str]:
    """The exit status of one run, and what it said."""
    # Messages in English, since words are looked for; temporary files where they will be deleted.
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(into)}
    try:
        process = subprocess.Popen(  # noqa: S603  # the user's own compiler, and no shell
            words,
            cwd=into,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # to be killed with all that it starts
        )
    except OSError as error:
        raise CompilerError(f"{shown}: cannot be started ({error.strerror})") from error
    with process:
        try:
            # Not wait: with a timeout it sleeps up to 50 ms at a time.
            _, message = process.communicate(timeout=TIMEOUT)
        except BaseException as error:  # Ctrl-C as well, which does not reach another session
            # What has left the group too may hold the pipe open: it is not read any more.
            _kill(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CompilerError(f"{shown}: not done after {TIMEOUT:g} s") from error
            raise
    return process.returncode, message.decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The compiler and all that it has started."""
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all have ended already
        os.killpg(process.pid, signal.SIGKILL)


def _first_error(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # The drivers' last line, that the linker has failed: why, it has said before.
    lines = [line for line in lines if not re.match(r"collect2: error|clang: .* linker", line)]
    line = next((line for line in lines if "error" in line), (lines or ["no message"])[0])
    return "".join(character if character.isprintable() else " " for character in line[:300])


def _stem(source: Source, means: list[str]) -> str:
    """NAME-DIGEST, equal where the same would be built by the same means."""
    said = source.identity or source.read()
    parts = [source.name, bool(source.identity), said, *source.optimisation, *means]
    return f"{source.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"


def _means(found: tuple[str, ...]) -> list[str]:
    """The flags, the command, and what tells one version of its programs from another."""
    # To ask for the version would start a process (2 ms); an update changes size or time.
    facts = [*itertools.chain(*NATIVE), *FLAGS, *found]
    programs = [shutil.which(word) for word in found if not word.startswith("-")]  # "ccache gcc"
    if "ziglang" in found and (zig := _zig()):
        programs.append(str(zig))
    for program in filter(None, programs):
        real = os.path.realpath(program)
        with contextlib.suppress(OSError):  # gone just now: starting it will say so
            status = os.stat(real)
            facts.append(f"{real} {status.st_size} {status.st_mtime_ns}")
    return facts


@functools.cache
def _headers() -> str:
    """A digest of the headers that a source may include."""
    digest = hashlib.sha256()
    for header in sorted(HEADERS.glob("*.h")):
        digest.update(f"{header.name}\n".encode() + header.read_bytes())
    return digest.hexdigest()


@functools.cache
def _cpu() -> str:
    """What a compiler can know of this processor: several machines may share one cache."""
    facts = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "isa", "cpu")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = list(itertools.takewhile(str.strip, file))  # the others are like it
    except OSError:  # not Linux: the host stands for its processor, and no process is started
        return f"{platform.machine()} {platform.node()}"
    kept = [line for line in first if line.split(":")[0].strip() in facts or line[:4] == "CPU "]
    return platform.machine() + "".join(kept)
