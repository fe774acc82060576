"""What tests of trainings share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from evaluators.train import prepare_process


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The process as a worker has it, until the module is done."""
    threads = torch.get_num_threads()
    prepare_process()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
