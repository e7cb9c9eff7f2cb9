"""From the start of the process to the first training batch, and to the end of a one-epoch run of HelloWorld.

The baseline is the same model and data in a bare script with ``Trainer(logger=False)``. The runner writes its record
and mirrors it to TensorBoard and to an MLflow store in SQLite, as it does by default.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import REPOSITORY, Row
from benchmarks.timed_hello import FIRST_BATCH_FILE

REPETITIONS = 7
BARE = [sys.executable, "-m", "benchmarks.timed_hello"]
RUNNER = [
    sys.executable,
    "-m",
    "health_ml.runner",
    "--model=benchmarks.timed_hello.TimedHelloWorld",
    "--max_epochs=1",
]


def seconds_of_run(command: list[str], folder: Path) -> tuple[float, float]:
    """Returns the seconds to the first training batch, and to the end of the process."""
    first_batch = folder / "first_batch"
    first_batch.unlink(missing_ok=True)
    paths = [str(REPOSITORY), str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        FIRST_BATCH_FILE: str(first_batch),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    begin = time.time()
    finished = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    end = time.time()
    if finished.returncode != 0:
        raise RuntimeError(f"{command} ended with exit code {finished.returncode}:\n{finished.stderr[-3000:]}")
    return float(first_batch.read_text()) - begin, end - begin


def main() -> list[Row]:
    """Returns the medians of runs that take turns, so that both see the same load on the machine."""
    folder = Path(tempfile.mkdtemp())
    bare, runner = [], []
    try:
        seconds_of_run(BARE, folder)
        _, first = seconds_of_run(RUNNER, folder)
        for _ in range(REPETITIONS):
            bare.append(seconds_of_run(BARE, folder))
            runner.append(seconds_of_run(RUNNER, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for index, (name, target) in enumerate((("first training batch", 1.10), ("whole one-epoch run", 1.40))):
        baseline = statistics.median(times[index] for times in bare)
        value = statistics.median(times[index] for times in runner)
        rows.append(Row(f"HelloWorld: {name}", value, baseline, value / baseline, f"ratio <= {target:.2f}"))
    whole = rows[-1].baseline or 0.0
    print(f"the very first run, which makes the MLflow store: {first / whole:.2f} times as long", file=sys.stderr)
    return rows
