"""Who may import whom, as ARCHITECTURE.md states it; and that light imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("cellgraph", "evaluators", "search", "reports")
FILES = sorted(p for package in OURS for p in (ROOT / package).rglob("*.py"))

# What each package may import of ours; of search, only these modules where a list is given.
ALLOWED = {
    "cellgraph": ("cellgraph",),
    "evaluators": ("evaluators", "cellgraph"),
    "search": ("search", "evaluators", "cellgraph"),
    "reports": ("reports", "search.journal", "search.errors", "cellgraph"),
}
# Files of cellgraph that touch tensors; all others are free of torch.
TENSORS = (
    *("interpret.py", "backends.py", "eager.py", "native.py", "bound.py", "tensors.py"),
    *("layer.py", "parameters.py", "torch_layers.py", "scan.py", "torch_source.py", "check.py"),
    *("torch_check.py", "torch_only.py", "onnx_check.py", "keras_check.py", "loop.py", "pt2.py"),
    *("c_weights.py", "c_check.py"),
)


def imports(path: Path) -> list[str]:
    """The modules that a file imports, wherever in it, as full names (with the imported name)."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _under(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(ROOT)
    allowed: tuple[str, ...] = ALLOWED[here.parts[0]]
    if here == Path("search/cli.py"):
        allowed += ("reports",)
    for module in imports(path):
        if module.split(".")[0] in OURS:
            assert any(_under(module, package) for package in allowed), f"{here} imports {module}"
        assert not _under(module, "ray") or here == Path("search/cluster.py"), f"{here} imports ray"
        assert module.split(".")[0] not in ("tests", "configs")
        if here.parts[0] == "cellgraph" and _under(module, "torch"):
            assert here.name in TENSORS, f"{here} imports torch"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cellgraph", ("torch", "pandas", "ray")),
        ("reports", ("torch", "pandas", "ray")),
        ("search.cli", ("torch", "pandas", "ray", "music21")),
        ("search.launch", ("ray", "music21", "pandas")),
        ("evaluators", ("ray", "music21", "pandas")),
    ],
)
def test_light_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_no_file_is_too_long_to_read() -> None:
    lengths = {p: p.read_text(encoding="utf-8").count("\n") for p in FILES}
    assert max(lengths.values()) <= 500, max(lengths, key=lambda p: lengths[p])


def test_the_top_level_is_what_it_should_be() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: an unpacked source archive has nothing to compare")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    named = {*OURS, "configs", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    named |= {"constraints.txt", "ARCHITECTURE.md", "CHANGELOG.md", ".ci", ".gitignore"}
    assert top <= named
