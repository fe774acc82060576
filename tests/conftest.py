"""What all tests share: one thread each, and a processor that computes as Python expects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from search.bench.tables import aligned

# Several processes of tests share the cores, and small tensors gain nothing from threads.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cells",
        type=int,
        default=24,
        help="random cells on which native code is compared with the interpreter (24)",
    )


#: What takes longest begins first: with one file a process, the last one works alone.
LONGEST = ("test_readme.py", "test_bench_search.py", "test_data_chorales.py", "test_kill.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A run in this process (`--workers 0`) flushes them to zero, for good; hypothesis objects."""
    yield
    torch.set_flush_denormal(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What test_zoo.py has proved, in a table."""
    rows = sorted(
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "proof"
    )
    if rows:
        terminalreporter.section("named cells, values and gradients in float64")
        table = [["cell", "parameters", "checked against", "largest difference"]]
        table += [[cell, f"{size:,}", what, f"{by:.1e}"] for cell, size, what, by in rows]
        for line in aligned(table):
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"{len(rows)} proofs; parameters at H = X = 64")
