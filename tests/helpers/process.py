"""Runs the real command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_himl(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """Returns the finished ``himl-runner`` process, with its standard output and error as text.

    One thread per process keeps concurrent tests from slowing each other down, and the plain progress bar keeps
    the output readable.
    """
    return subprocess.run(
        [sys.executable, "-m", "health_ml.runner", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
