"""One process per run folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from health_ml.backends import run_lock as module
from health_ml.backends.run_lock import run_lock
from health_ml.environment import RunEnvironment
from health_ml.errors import EXIT_USAGE, OutputError
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.settings import RECORD_RUN_LOCK_FILE
from tests.helpers.containers import LineContainer
from tests.helpers.runs import run_container


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.2)


def refused(folder: Path) -> str:
    with pytest.raises(OutputError, match="writes to the run folder") as caught, run_lock(folder):
        pass
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def test_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        text = refused(tmp_path / "run")
        assert f"Process {os.getpid()} on" in text
        assert str(tmp_path) in text
        assert text.endswith(
            "once no process of the run is left on any machine, remove "
            + str(tmp_path / "run" / RECORD_RUN_LOCK_FILE)
            + "."
        )
    with run_lock(tmp_path / "run"):
        pass


def test_lock_is_not_kept_by_processes_that_load_data(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with run_lock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with run_lock(tmp_path):
            (tmp_path / "locked").touch()
            time.sleep(30)
        os._exit(0)
    while not (tmp_path / "locked").exists():
        time.sleep(0.01)
    text = refused(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert f"Process {child} on" in text
    with run_lock(tmp_path):
        pass


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    with run_lock(tmp_path), run_lock(tmp_path):
        pass


def test_run_in_a_folder_that_is_taken_changes_nothing_there(tmp_path: Path) -> None:
    environment = RunEnvironment(run_folder=tmp_path / "taken")
    run_container(LineContainer(max_epochs=1), tmp_path, environment=environment)
    before = (tmp_path / "taken" / "run" / "status.jsonl").read_bytes()
    with run_lock(tmp_path / "taken" / "run"), pytest.raises(OutputError, match="writes to the run folder"):
        run_container(LineContainer(max_epochs=2), tmp_path, environment=environment)
    assert (tmp_path / "taken" / "run" / "status.jsonl").read_bytes() == before


def test_restarts_are_counted(tmp_path: Path) -> None:
    environment = RunEnvironment(run_folder=tmp_path / "again")
    for epochs in (1, 2, 3):
        run_container(LineContainer(max_epochs=epochs), tmp_path, environment=environment)
    record = read_record(tmp_path / "again")
    assert (record.status.status, record.status.attempt) == (RunStatus.FINISHED, 2)
    assert [(row["attempt"], row["checkpoint"], row["step"]) for row in record.attempts] == [
        (0, None, None),
        (1, "checkpoints/last.ckpt", 4),
        (2, "checkpoints/last.ckpt", 8),
    ]
    assert [row.epoch for row in record.metrics if "train/loss" in row.metrics] == [0, 1, 2]
    assert sum("test/loss" in row.metrics for row in record.metrics) == 1
