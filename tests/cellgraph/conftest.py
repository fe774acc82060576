"""Settings for all tests of cells."""

from __future__ import annotations

import torch

# Tensors here have a few dozen elements: on a busy machine, threads would only wait for each other.
torch.set_num_threads(1)
