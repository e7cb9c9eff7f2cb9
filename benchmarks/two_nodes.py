"""A job with two nodes on this machine, against the same two processes started by hand.

Measured is the job from its start to its end, without its submission, which the last line adds.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import REPOSITORY, Row

REPETITIONS = 3
FLAGS = ["--model=HelloWorld", "--max_epochs=30", "--num_nodes=2", "--tracking_uri=none"]
COMMAND = [sys.executable, "-m", "health_ml.runner", *FLAGS]


def environment_of(folder: Path) -> dict[str, str]:
    """Returns the variables for the runner of this repository."""
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "XDG_CACHE_HOME": str(folder.with_name(f"{folder.name}_cache")),
        "OMP_NUM_THREADS": "1",
    }


def seconds_by_hand(folder: Path, number: int) -> float:
    """Returns the seconds that two processes take that are started as the nodes of one training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **environment_of(folder),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HIML_RUN_FOLDER": str(folder / f"by_hand_{number}"),
    }
    begin = time.monotonic()
    nodes = [
        subprocess.Popen(
            COMMAND,
            cwd=folder,
            env={**shared, "NODE_RANK": str(node)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        for node in range(2)
    ]
    codes = [node.wait(300) for node in nodes]
    if any(codes):
        raise RuntimeError(f"the two processes ended with exit codes {codes}")
    return time.monotonic() - begin


def seconds_of_job(folder: Path) -> tuple[float, float]:
    """Returns the seconds of the job, and those of its submission."""
    begin = time.monotonic()
    submitted = subprocess.run(
        [*COMMAND, "--cluster=local"], cwd=folder, env=environment_of(folder), capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    started = time.monotonic()
    run_id = submitted.stdout.split()[2]
    exit_file = folder / "outputs" / run_id / "job" / "exit.json"
    while not exit_file.exists():
        if time.monotonic() - started > 300:
            raise RuntimeError(f"the job {run_id} does not end")
        time.sleep(0.02)
    if '"exit_codes": [\n    0,\n    0\n  ]' not in exit_file.read_text():
        raise RuntimeError(f"the job {run_id} failed: {exit_file.read_text()}")
    return time.monotonic() - started, started - begin


def main() -> list[Row]:
    """Returns the medians of runs that take turns."""
    folder = Path(tempfile.mkdtemp())
    by_hand, jobs, submissions = [], [], []
    try:
        for number in range(REPETITIONS):
            by_hand.append(seconds_by_hand(folder, number))
            job, submission = seconds_of_job(folder)
            jobs.append(job)
            submissions.append(submission)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(environment_of(folder)["XDG_CACHE_HOME"], ignore_errors=True)
    baseline, value = statistics.median(by_hand), statistics.median(jobs)
    print(f"the submission before that takes {statistics.median(submissions):.2f} s", file=sys.stderr)
    return [Row("two-node job on this machine / two processes", value, baseline, value / baseline, "ratio <= 1.10")]
