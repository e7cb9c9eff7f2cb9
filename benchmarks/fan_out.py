"""Eight seeds of HelloWorld for one epoch in one fan-out, against eight separate runs started two at a time.

Both write records and mirror them to TensorBoard and to the same MLflow store in SQLite, as they do by default.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness import REPOSITORY, Row

REPETITIONS = 3
SEEDS = 8
AT_A_TIME = 2
RUNNER = [sys.executable, "-m", "health_ml.runner", "--model=HelloWorld", "--max_epochs=1"]
FAN_OUT = [*RUNNER, f"--different_seeds={SEEDS}", f"--max_concurrent_trials={AT_A_TIME}"]


def run(command: list[str], folder: Path) -> None:
    """Runs a command in a folder.

    :raises RuntimeError: If it fails.
    """
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{command} ended with exit code {finished.returncode}:\n{finished.stderr[-3000:]}")


def seconds_of_separate_runs(folder: Path) -> float:
    """Returns the seconds of eight runs, two of which run at any time."""
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda seed: run([*RUNNER, f"--random_seed={seed}"], folder), range(SEEDS)))
    return time.monotonic() - begin


def seconds_of_fan_out(folder: Path) -> float:
    """Returns the seconds of one fan-out."""
    begin = time.monotonic()
    run(FAN_OUT, folder)
    return time.monotonic() - begin


def main() -> list[Row]:
    """Returns the medians of both, which take turns, so that they see the same load on the machine."""
    folder = Path(tempfile.mkdtemp())
    separate, together = [], []
    try:
        run(RUNNER, folder)  # makes the store, and has everything read from the disk once
        for _ in range(REPETITIONS):
            separate.append(seconds_of_separate_runs(folder))
            together.append(seconds_of_fan_out(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    baseline, value = statistics.median(separate), statistics.median(together)
    return [Row(f"{SEEDS} seeds in a fan-out / separate runs", value, baseline, value / baseline, "ratio <= 0.35")]
