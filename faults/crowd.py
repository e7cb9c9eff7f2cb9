"""Many processes at once: runs that start in one folder, and processes that make the store of MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from faults.attempts import Attempt, Command, fork
from faults.trial import Outcome
from health_ml.records.mlflow_store import load_client, open_client
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus

STORE_PROCESSES = 10


def check_runs_at_once(folder: Path, project: Path, count: int, outcomes: list[Outcome]) -> None:
    """Starts runs at the same moment in one folder: each gets a folder of its own and finishes."""
    folder.mkdir()
    flags = ("--model=demanding.Demanding", "--tracking_uri=none", "--max_epochs=1", f"--output_to={folder / 'runs'}")
    attempts = [Attempt(Command(flags, project, {}, folder / f"{number}.log")) for number in range(count)]
    codes = [attempt.wait(300) for attempt in attempts]
    runs = list((folder / "runs").iterdir())
    finished = [run for run in runs if read_record(run).status.status is RunStatus.FINISHED]
    outcome = Outcome("runs at once", -1)
    if any(codes):
        outcome.problems.append(("wrong exit codes", f"{sum(map(bool, codes))} of {count} runs failed"))
    if not len(runs) == len(finished) == count:
        outcome.problems.append(("different results", f"{len(finished)} of {len(runs)} runs finished, not {count}"))
    outcomes.append(outcome)


def check_store_at_once(folder: Path, outcomes: list[Outcome]) -> None:
    """Makes the store of MLflow in several processes at the same moment: all of them find it complete."""
    folder.mkdir()
    _, status = os.waitpid(fork(lambda: _make_stores(folder)), 0)
    outcome = Outcome("store at once", -1)
    if failed := os.waitstatus_to_exitcode(status):
        outcome.problems.append(("different results", f"{failed} processes could not make the store"))
    outcomes.append(outcome)


def _make_stores(folder: Path) -> int:
    """Returns how many of the processes failed."""
    load_client()
    pids = [fork(lambda: _make_store(folder)) for _ in range(STORE_PROCESSES)]
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def _make_store(folder: Path) -> int:
    client = open_client(f"sqlite:///{folder / 'mlflow.db'}")
    return 0 if client.search_experiments() else 1
