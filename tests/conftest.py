"""What all tests share: one thread each, and a processor that computes as Python expects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# Several processes of tests share the cores, and small tensors gain nothing from threads.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cells",
        type=int,
        default=24,
        help="random cells on which native code is compared with the interpreter (24)",
    )


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A run in this process (`--workers 0`) flushes them to zero, for good; hypothesis objects."""
    yield
    torch.set_flush_denormal(False)
