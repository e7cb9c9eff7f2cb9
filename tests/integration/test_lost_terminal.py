"""A training whose terminal or pipe is closed: the one is a request to stop, the other changes nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from health_ml.checkpoints.inspect import read_progress
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus

REPOSITORY = Path(__file__).resolve().parents[2]
SLOW = """
import time
from pathlib import Path
from tests.helpers.containers import LineContainer, LineModel

class SlowModel(LineModel):
    def on_train_epoch_start(self):
        print("epoch", self.current_epoch, flush=True)

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)

class Slow(LineContainer):
    def create_model(self):
        return SlowModel()
"""


def command(folder: Path, *flags: str) -> list[str]:
    (folder / "slow.py").write_text(SLOW)
    return [sys.executable, "-m", "health_ml.runner", "--model=slow.Slow", "--tracking_uri=none", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(REPOSITORY)])}


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_metrics(folder: Path) -> bool:
    return bool(list(folder.glob("outputs/*/run/metrics.jsonl")))


def test_a_closed_terminal_stops_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    arguments = command(tmp_path, "--max_epochs=10000")
    child, terminal = pty.fork()
    if child == 0:  # the leader of a session with a terminal, as in a window of its own
        try:
            os.chdir(tmp_path)
            os.execve(sys.executable, arguments, environment())
        finally:
            os._exit(99)
    code = None
    try:
        os.set_blocking(terminal, False)
        wait_for(lambda: _drained(terminal) and has_metrics(tmp_path))
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if code is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert code == 128 + signal.SIGHUP
    (run,) = (tmp_path / "outputs").iterdir()
    status = read_record(run).status
    assert (status.status, status.message) == (RunStatus.PREEMPTED, "The run was asked to stop by SIGHUP.")
    assert read_progress(run / "checkpoints" / "last.ckpt").global_step > 0


def _drained(terminal: int) -> bool:
    """Reads what the terminal shows, so that nobody waits for room there."""
    try:
        while os.read(terminal, 65536):
            pass
    except BlockingIOError:
        return True
    return True


@pytest.mark.parametrize("is_unbuffered", [False, True], ids=["buffered", "unbuffered"])
def test_a_training_outlives_the_pipe_that_it_prints_to(is_unbuffered: bool, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "--max_epochs=20"),
        cwd=tmp_path,
        env={**environment(), "PYTHONUNBUFFERED": "1" if is_unbuffered else ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        while b"epoch 2" not in (line := process.stdout.readline()):
            assert line
        process.stdout.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    (run,) = (tmp_path / "outputs").iterdir()
    record = read_record(run)
    assert record.status.status is RunStatus.FINISHED
    assert max(row.epoch for row in record.metrics if "train/loss" in row.metrics and row.epoch is not None) == 19
    assert "test/loss" in record.last_values


def test_a_program_may_be_started_without_any_output(tmp_path: Path) -> None:
    script = f"{sys.executable} -m health_ml.runner --version >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path, check=False).returncode == 0
