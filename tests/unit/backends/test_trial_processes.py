"""Which processes are ended with a trial, and which are left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from health_ml.backends.trial_lock import take_lock, write_owner
from health_ml.backends.trial_processes import TrialProcess, kill_trials
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.process_identity import process_identity

SLEEP = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """Yields a process in a session of its own, which prints the number of its child."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    assert process.stdout is not None
    return psutil.Process(int(process.stdout.readline()))


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(process: psutil.Process) -> None:
    deadline = time.monotonic() + 10
    while not has_ended(process):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_dead_trial_has_left_is_ended(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    lock_file = tmp_path / "trial.lock"
    lock_file.write_text(json.dumps(process_identity(process.pid)))
    child = child_of(process)
    TrialProcess(lock_file).end_children()
    assert process.poll() is None, "it lives, so nothing is left over"
    process.kill()
    process.wait()
    assert not has_ended(child)
    TrialProcess(lock_file).end_children()
    wait_for_end(child)


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"pid_namespace": "pid:[1]"}, {"process_start": 1}])
def test_a_process_that_only_has_the_number_of_a_trial_is_left_alone(
    tmp_path: Path, process: subprocess.Popen[str], change: dict[str, object]
) -> None:
    lock_file = tmp_path / "trial.lock"
    lock_file.write_text(json.dumps({**process_identity(process.pid), **change}))
    child = child_of(process)
    assert TrialProcess(lock_file).send_signal(signal.SIGKILL)
    TrialProcess(lock_file).end_children()
    time.sleep(0.2)
    assert process.poll() is None
    assert not has_ended(child)


def test_a_trial_is_killed_as_soon_as_its_number_is_known(tmp_path: Path, process: subprocess.Popen[str]) -> None:
    folder = FanOutFolder(tmp_path / "fan_out")
    lock = take_lock(folder.trial_lock(0))
    assert lock is not None
    child = child_of(process)
    # A trial that was just ordered: its lock is held, and nobody has written whose it is.
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; time.sleep(0.5); open(sys.argv[1], 'w').write(sys.argv[2])",
         str(folder.trial_lock(0)), json.dumps(process_identity(process.pid))]
    )  # fmt: skip
    try:
        kill_trials(folder)
    finally:
        writer.wait()
        os.close(lock)
    process.wait(5)
    wait_for_end(child)
    assert process.returncode == -signal.SIGKILL


def test_a_lock_that_is_only_looked_at_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "trial.lock"
    held = take_lock(path)
    assert held is not None
    write_owner(held, process_identity())
    program = "import sys, time; time.sleep(0.5)"
    holder = subprocess.Popen([sys.executable, "-c", program], pass_fds=[held])
    os.close(held)
    again = take_lock(path)
    assert holder.wait() == 0
    assert again is not None
    os.close(again)
