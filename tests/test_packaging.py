"""The wheel holds everything that the command needs, and the bundled configurations are right."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from evaluators import tasks
from search import config as configuration
from search import funnel

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_cells_configurations_and_templates(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet",
         "--disable-pip-version-check", "--wheel-dir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("cellsearch-*.whl")
    names = frozenset(zipfile.ZipFile(wheel).namelist())
    data = [*ROOT.glob("cellgraph/zoo/*.cell"), *ROOT.glob("reports/templates/*")]
    data += [*ROOT.glob("cellgraph/kernels/*.[ch]"), *ROOT.glob("evaluators/*.c")]
    code = [
        p
        for package in ("cellgraph", "evaluators", "reports", "search")
        for p in (ROOT / package).rglob("*.py")
    ]
    assert len(data) > 20
    missing = [
        str(p.relative_to(ROOT)) for p in data + code if str(p.relative_to(ROOT)) not in names
    ]
    assert not missing
    for path in ROOT.glob("configs/*.yaml"):
        assert f"search/configs/{path.name}" in names
    assert not [n for n in names if n.startswith(("tests", "runs", "configs"))]


def test_tested_versions_lie_within_the_ranges() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )  # fmt: skip
    lower = {name.lower(): version for name, version in pinned.items()}
    project = (ROOT / "pyproject.toml").read_text()
    ranges = re.findall(r'"([A-Za-z0-9-]+)(?:\[\w+\])?>=([0-9.]+)"', project)
    assert len(ranges) > 10
    for name, least in ranges:
        if name == "setuptools":  # needed to build, not to run
            continue
        numbers = [tuple(map(int, v.split(".")[:3])) for v in (lower[name.lower()], least)]
        assert numbers[0] >= numbers[1], name


@pytest.mark.parametrize("name", ["quick", "standard", "jozefowicz2015"])
def test_bundled_configurations(name: str) -> None:
    config = configuration.load(name)
    assert config.name == name
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    head = text.split(f"\nname: {name}\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert all(word in head for word in ("Purpose", "Time", "Outcome"))
    assert len(funnel.seeds(config)) == len(config.search.seeds)
    for stage in [*config.tasks, *([config.filter] if config.filter else [])]:
        tasks.task_class(stage.task)  # raises for an unknown one; nothing is read


def test_quick_needs_no_download_and_has_three_families() -> None:
    config = configuration.load("quick")
    made = [tasks.task_class(stage.task) for stage in config.tasks]
    assert {task.family for task in made} == {"arithmetic", "language", "music"}
    assert {task.data_set for task in made} == {None, "pydoc_char", "chorales"}
    assert config.search.candidates >= 60
    assert config.filter is not None
    assert config.filter.threshold == 0.95


def test_the_protocol_of_the_paper() -> None:
    """Jozefowicz et al. 2015, sections 3.1 to 3.5, number by number."""
    config = configuration.load("jozefowicz2015")
    search = config.search
    assert (search.candidates, search.pool, search.settings) == (10_000, 100, 20)
    assert (search.seeds, search.baseline, search.seed_settings) == (("lstm", "gru"), "gru", "all")
    assert (search.threshold, search.experienced_after, search.best_settings) == (0.9, 420, 100)
    assert (search.mutation.edits, search.mutation.crossover) == ("per_node", 0.0)
    assert config.filter is not None
    assert (config.filter.task, config.filter.threshold) == ("memorisation", 0.95)
    assert config.grid == configuration.GridConfig.jozefowicz()
    budgets = {stage.task: stage.params for stage in config.tasks}
    assert budgets == {
        "arithmetic": (250_000, 1_000_000),
        "xml": (250_000, 1_000_000),
        "ptb_word": (5_000_000,),
    }
    assert {stage.schedule for stage in config.tasks} == {"halving"}
