"""From C to loaded libraries: which compiler, how often it runs, and how it may fail.

What the cache does with libraries is in test_libraries.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellgraph.kernels import compiler, libraries
from cellgraph.kernels.compiler import CompilerError, Source

ADD = "long {0}(long a, long b) {{ return a + b; }}"
REAL = os.environ.get("CC", "cc")
Script = Callable[[str], Path]


def add(name: str = "add", identity: str = "") -> Source:
    """A source with one function, called as it is."""
    return Source(name, ADD.format(name), identity)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a process that has not loaded anything; gives the folder."""
    monkeypatch.setenv("CELLSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler._process, "loaded", {})
    monkeypatch.setattr(compiler._process, "native", {})
    monkeypatch.setattr(libraries._process, "unusable", {})
    yield tmp_path / "cache" / "kernels"
    assert not list(tmp_path.glob("cache/kernels/unfinished/*")), "left behind"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Makes a shell script the compiler; its text is preceded by one that counts the runs."""

    def make(script: str) -> Path:
        path = tmp_path / "fakecc"
        path.write_text(f"#!/bin/sh\necho run >>'{tmp_path}/runs'\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setenv("CC", str(path))
        return path

    return make


def runs(tmp_path: Path) -> int:
    log = tmp_path / "runs"
    return log.read_text().count("\n") if log.exists() else 0


def forget() -> None:
    """What a new process knows: nothing."""
    compiler._process.loaded.clear()


def ended(pid: int) -> bool:
    """Has a process ended? (One that nobody has waited for yet has.)"""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (ProcessLookupError, FileNotFoundError):
        return True


def soon(condition: Callable[[], bool]) -> bool:
    """Does it become true? Ten seconds are for ever."""
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def number_in(path: Path) -> int:
    """The number that a script writes into a file as soon as it runs."""
    assert soon(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


# --- which compiler ------------------------------------------------------------------------------


def programs(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o700)


def test_the_order_of_the_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert compiler.command() is None
    for name in ("clang", "gcc", "cc"):  # each before those that were there
        programs(tmp_path, name)
        assert compiler.command() == (str(tmp_path / name),)
    programs(tmp_path, "tcc", "my cc")
    monkeypatch.setenv("CC", "tcc")
    assert compiler.command() == (str(tmp_path / "tcc"),)
    monkeypatch.setenv("CC", f"'{tmp_path}/my cc' -m64 -DA='b c'")
    assert compiler.command() == (str(tmp_path / "my cc"), "-m64", "-DA=b c")
    for useless in ("", " ", "nosuchcc", "'tcc", "''", str(tmp_path), f"{tmp_path}/no/cc"):
        monkeypatch.setenv("CC", useless)
        assert compiler.command() == (str(tmp_path / "cc"),)


def test_ziglang_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "ziglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "zig").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = compiler.command()
    assert found == (sys.executable, "-m", "ziglang", "cc")
    before = compiler._means(found)
    assert before == compiler._means(found)
    (package / "zig").write_text("another version")
    assert before != compiler._means(found)
    programs(tmp_path, "clang")
    assert compiler.command() == (str(tmp_path / "clang"),)


def test_without_a_compiler_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(compiler, "_zig", lambda: None)
    with pytest.raises(CompilerError, match=r"^no C compiler found; install .* pip install "):
        compiler.load([add()])
    assert "\n" not in compiler.how_to_get_one()


def test_arguments_in_cc_reach_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "int answer(void) { return ANSWER; }"
    for answer in (41, 42):  # and tell entries apart
        monkeypatch.setenv("CC", f"{REAL} -DANSWER={answer}")
        (library,) = compiler.load([Source("answer", text)])
        assert library.answer() == answer


def test_no_torch_is_imported() -> None:
    code = "import sys, cellgraph.kernels.compiler; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- one run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_float_and_double(double: bool) -> None:
    text = """
    #include <math.h>
    #ifdef REAL_DOUBLE
    typedef double real;
    #else
    typedef float real;
    #endif
    long bytes(void) { return sizeof(real); }
    double root(double x) { return sqrt(x) + cbrt(x); }
    """
    (library,) = compiler.load([Source("kinds", text)], double=double)
    library.root.restype, library.root.argtypes = ctypes.c_double, [ctypes.c_double]
    assert library.bytes() == (8 if double else 4)
    assert library.root(64.0) == pytest.approx(12.0), "the mathematical library is there"


def test_the_compiler_writes_where_it_is_swept(
    tmp_path: Path, fresh: Path, fake: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    fake(f'echo "$TMPDIR" >{log}; pwd >>{log}; : >"$TMPDIR/cc1.s"; : >a.out; exec {REAL} "$@"')
    assert compiler.load([add()])[0].add(1, 2) == 3
    temporary, current = map(Path, log.read_text().splitlines())
    assert temporary == current
    assert temporary.parent == fresh / "unfinished"
    assert not temporary.exists()


def test_the_headers_of_the_package_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "three.h").write_text("#define THREE 3\n")
    monkeypatch.setattr(compiler, "HEADERS", tmp_path)
    (library,) = compiler.load([Source("h", '#include "three.h"\nint h(void) { return THREE; }')])
    assert library.h() == 3


def test_a_batch_is_one_run_and_the_rest_none(tmp_path: Path, fake: Script) -> None:
    fake(f'exec {REAL} "$@"')
    names = ["one", "two", "three"]
    first = compiler.load([add(name) for name in names])
    assert [library[name](2, 3) for name, library in zip(names, first, strict=True)] == [5, 5, 5]
    assert runs(tmp_path) == 1
    again = compiler.load([add("three"), add("one"), add("three")])
    assert again == [first[2], first[0], first[2]], "remembered in the process"
    forget()
    for name, library in zip(names, compiler.load([add(name) for name in names]), strict=True):
        assert library[name](2, 3) == 5
    assert runs(tmp_path) == 1, "found in the cache"
    forget()
    mixed = compiler.load([add("two"), add("four"), add("four")])
    assert mixed[0].two(1, 1) == mixed[1].four(1, 1) == 2
    assert mixed[1] is mixed[2]
    assert runs(tmp_path) == 2, "what is missing alone is built"
    assert compiler.load([]) == []


def test_identity_stands_for_the_text(tmp_path: Path, fake: Script) -> None:
    fake(f'exec {REAL} "$@"')
    (first,) = compiler.load([Source("s", "int f(void) { return 1; }", "same")])
    assert compiler.load([Source("s", "int g(void) { return 1; }", "same")]) == [first]
    others = [
        Source("s", "int f(void) { return 2; }", "other"),
        Source("S", "int f(void) { return 3; }", "same"),
        Source("s", "int f(void) { return 4; }"),
    ]
    assert [compiler.load([source])[0].f() for source in others] == [2, 3, 4]
    assert runs(tmp_path) == 4


def test_what_an_entry_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "cc"
    programs(tmp_path, "cc")
    found = (str(program), "-m64")
    seen = [compiler._means(found)]

    def changed() -> None:
        seen.append(compiler._means(found))
        assert seen[-1] not in seen[:-1]

    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DNEW"))
    changed()
    found = (str(program), "-m32")
    changed()
    os.utime(program, ns=(1, 1))
    changed()
    program.write_text("#!/bin/sh\n# new\n")
    os.utime(program, ns=(1, 1))
    changed()
    program.unlink()
    changed()
    quick, thorough = (
        compiler._stem(Source("a", "", optimisation=level), [])
        for level in (compiler.QUICK, compiler.THOROUGH)
    )
    assert quick != thorough
    headers = compiler._headers.__wrapped__
    monkeypatch.setattr(compiler, "HEADERS", tmp_path)
    digests = [headers()]
    for name, text in (("a.h", ""), ("a.h", "int a;"), ("b.h", "int a;")):
        (tmp_path / name).write_text(text)
        digests.append(headers())
    assert len(set(digests)) == 4
    stems = {compiler._stem(add(), [kind, compiler._cpu()]) for kind in ("float", "double")}
    assert len(stems) == 2


def test_the_processor_is_known_by_what_does_not_vary() -> None:
    known = compiler._cpu.__wrapped__()
    assert known == compiler._cpu.__wrapped__()
    assert "MHz" not in known
    if Path("/proc/cpuinfo").exists() and "\nflags" in Path("/proc/cpuinfo").read_text():
        assert "flags" in known
        assert "model name" in known


@pytest.mark.parametrize(
    "name",
    ["", "a" * 81, "../a", "a/b", "a.b", "a b", "a\n", "a\0", "é", "٣", "$(id)", "a;b", None, 3],
)
def test_a_name_that_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"^name of a source .*, expected 1 to 80 "):
        Source(name, "int a;")  # type: ignore[arg-type]


def test_the_longest_and_strangest_names(fresh: Path) -> None:
    for name in ("-", "-o", "_", "a" * 80):
        (library,) = compiler.load([Source(name, "int f(void) { return 7; }")])
        assert library.f() == 7
    stems = sorted(path.stem.rpartition("-")[0] for path in fresh.glob("*.json"))
    assert stems == sorted(["-", "-o", "_", "a" * 80])


def test_threads_build_once(tmp_path: Path, fake: Script) -> None:
    fake(f'exec {REAL} "$@"')
    results: list[ctypes.CDLL] = []
    threads = [
        threading.Thread(target=lambda: results.extend(compiler.load([add()]))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(map(id, results))) == 1
    assert runs(tmp_path) == 1


def test_the_flag_for_this_processor_may_be_refused(tmp_path: Path, fake: Script) -> None:
    refused = "-march=native"
    script = "case \" $* \" in *' {0} '*) echo \"error: what is '{0}'?\" >&2; exit 1;; esac"
    fake(script.format(refused) + f'\necho " $* " >>{tmp_path}/flags\nexec {REAL} -w "$@"')
    assert compiler.load([add()])[0].add(1, 2) == 3
    assert runs(tmp_path) == 2
    assert " -mcpu=native " in (tmp_path / "flags").read_text()
    assert compiler.load([add("other")])[0].other(1, 2) == 3
    assert runs(tmp_path) == 3, "the choice is remembered"
    both = script.format(refused) + "\n" + script.format("-mcpu=native")
    fake(f'{both}\nexec {REAL} "$@"')
    compiler._process.native.clear()
    assert compiler.load([add("third")])[0].third(1, 2) == 3
    assert runs(tmp_path) == 6
    fake("echo 'error: no native here' >&2; exit 1")
    with pytest.raises(CompilerError, match=r"no native here$"):
        compiler.load([add("fourth")])


# --- how it fails --------------------------------------------------------------------------------


def test_an_error_in_a_text_names_its_line() -> None:
    good, bad = add("good"), Source("bad", "int a;\nint f(void) { return nosuch; }\n")
    with pytest.raises(CompilerError, match=r": exit status 1: bad-[0-9a-f]{32}\.c:2:\d+: .*error"):
        compiler.load([good, bad])
    assert compiler.load([good])[0].good(1, 1) == 2


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo; echo note; echo 'fatal error: tired \033[1m' >&2; exit 3",
         "exit status 3: fatal error: tired  [1m"),
        ("echo hello >&2; exit 1", "exit status 1: hello"),
        ("printf 'ld: cannot find x\\ncollect2: error: ld returned 1' >&2; exit 1",
         "exit status 1: ld: cannot find x"),
        ("exit 7", "exit status 7: no message"),
        ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", f"exit status 1: {'x' * 300}"),
        ("kill -9 $$", "killed by signal 9: no message"),
        ("exit 0", "exit status 0, but it has left no library"),
        (": >unit.c; : >library.so", "no library: .*file too short"),
        ("echo garbage >library.so", "no library: .*(invalid ELF header|file too short)"),
        ("mkdir library.so", "exit status 0, but it has left no library"),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_one_line(
    script: str, message: str, fresh: Path, fake: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake(script)
    shown = message if "(" in message or ".*" in message else message.replace("[", r"\[")
    with pytest.raises(CompilerError, match=f"^{path}: {shown}$") as caught:
        compiler.load([add()])
    assert "\n" not in str(caught.value)
    assert [p.name for p in fresh.iterdir()] == ["unfinished"]
    monkeypatch.setenv("CC", REAL)
    assert compiler.load([add()])[0].add(1, 2) == 3


def test_a_compiler_that_cannot_be_started(fake: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake("")
    path.write_text("#!/no/such/interpreter\n")
    with pytest.raises(CompilerError, match=rf"^{path}: cannot be started \(No such file"):
        compiler.load([add()])
    found = compiler.command()
    monkeypatch.setattr(compiler, "command", lambda: found)
    path.unlink()  # between being found and being started
    with pytest.raises(CompilerError, match=rf"^{path}: cannot be started \(No such file"):
        compiler.load([add()])


def test_after_the_time_limit_nothing_of_the_compiler_lives(
    tmp_path: Path, fake: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "TIMEOUT", 0.5)
    path = fake(f"sleep 600 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/leader; sleep 600")
    with pytest.raises(CompilerError, match=rf"^{path}: not done after 0\.5 s$"):
        compiler.load([add()])
    for name in ("leader", "child"):
        pid = number_in(tmp_path / name)
        assert soon(lambda pid=pid: ended(pid)), name


@pytest.mark.parametrize("leader", ["sleep 600", "exit 0"])
def test_a_process_that_holds_the_pipe_holds_nobody_up(
    leader: str, tmp_path: Path, fake: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "TIMEOUT", 0.5)
    # In a session of its own it survives the end of the compiler's group, with its pipe.
    code = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    fake(f'{sys.executable} -c "{code}" >{tmp_path}/child & {leader}')
    with pytest.raises(CompilerError, match=r"not done after 0\.5 s$"):
        compiler.load([add()])
    pid = number_in(tmp_path / "child")
    assert not ended(pid), "the error came while the pipe was open"
    os.kill(pid, signal.SIGKILL)


def test_an_interrupt_ends_the_compiler(
    tmp_path: Path, fake: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(f"echo $$ >{tmp_path}/leader; sleep 600")

    def interrupted(*_: object, **__: object) -> None:
        number_in(tmp_path / "leader")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiler.load([add()])
    assert ended(number_in(tmp_path / "leader"))
    monkeypatch.setenv("CC", REAL)
    assert compiler.load([add()])[0].add(1, 2) == 3, "the lock is free again"


def test_a_child_forked_while_a_library_is_built(tmp_path: Path, fake: Script) -> None:
    wait = f"while [ ! -e {tmp_path}/done ]; do sleep 0.01; done"
    fake(f'[ -e {tmp_path}/go ] || {{ : >{tmp_path}/started; {wait}; }}\nexec {REAL} "$@"')
    code = f"""
import os, signal, threading, time
from pathlib import Path
from cellgraph.kernels import compiler
here, source = Path({str(tmp_path)!r}), compiler.Source("add", {ADD.format("add")!r})
thread = threading.Thread(target=compiler.load, args=([source],))
thread.start()
while not (here / "started").exists():
    time.sleep(0.01)
(here / "go").touch()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(compiler.load([source])[0].add(20, 3))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
(here / "done").touch()
thread.join()
print(compiler.load([source])[0].add(20, 4))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "23\n24\n", done.stderr
