"""Puts back what a Trainer changes for the whole process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def restored_torch() -> Iterator[None]:
    """Restores deterministic mode, cuDNN's benchmark mode and anomaly detection, and the variable of the first."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.autograd.set_detect_anomaly(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
