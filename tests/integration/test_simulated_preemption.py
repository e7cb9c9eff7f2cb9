"""--simulate_preemption: a run that is interrupted in one process and continued in another one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults import demanding
from faults.compare import differences, metric_rows
from faults.trial import DDP
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import invoke, memory_backend
from tests.helpers.process import run_himl

HELLO = ("--model=HelloWorld", "--max_epochs=3", "--tracking_uri=none")


def only_run(folder: Path) -> Path:
    (run,) = (folder / "outputs").iterdir()
    return run


@pytest.mark.slow
def test_killed_and_continued(tmp_path: Path) -> None:
    finished = run_himl(*HELLO, "--simulate_preemption=step:12,signal:KILL", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "SIGKILL ended attempt 0 in epoch 1, at optimizer step 12." in finished.stdout
    assert "Attempt 1 continued from checkpoints/last.ckpt (optimizer step 8) and finished." in finished.stdout
    assert "Not tested: whether the results are those of a run without interruption" in finished.stdout
    run = only_run(tmp_path)
    assert read_record(run).status.attempt == 1
    logs = [(run / "console_logs" / f"attempt_{number}.log").read_text() for number in (0, 1)]
    assert ["FINISHED" in log for log in logs] == [False, True]
    plain = invoke(HELLO, folder=tmp_path)
    assert metric_rows(run) == metric_rows(plain.run_folder)


@pytest.mark.slow
def test_moment_that_never_comes(tmp_path: Path) -> None:
    finished = run_himl(*HELLO, "--simulate_preemption=step:1000", cwd=tmp_path)
    assert finished.returncode == 1
    assert "the run finished before it could be interrupted after optimizer step 1000, so nothing was tested" in (
        finished.stderr
    )


@pytest.mark.slow
def test_job_is_interrupted_and_continued(tmp_path: Path) -> None:
    finished = run_himl(
        *HELLO, "--cluster=local", "--wait_for_completion", "--simulate_preemption=step:3", cwd=tmp_path,
        environment={"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "SIGTERM ended attempt 0 in epoch 0, at optimizer step 3." in finished.stdout
    run = only_run(tmp_path)
    assert [row["step"] for row in read_record(run).attempts] == [None, 3]


@pytest.mark.slow
def test_stopped_by_the_user(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "health_ml.runner", "--model=HelloWorld", "--max_epochs=100000"]
    process = subprocess.Popen(
        [*command, "--tracking_uri=none", "--simulate_preemption=seconds:1000"], cwd=tmp_path, env={**os.environ},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("outputs/*/run/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert read_record(only_run(tmp_path)).status.status is RunStatus.PREEMPTED
    assert "Attempt 1" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--simulate_preemption=soon",), "'soon' is neither a moment nor a signal"),
        (("--simulate_preemption=epoch:3",), "the training has 3 epochs"),
        (("--simulate_preemption=step:1", "--pl_fast_dev_run=1"), "keeps no checkpoints"),
        (("--simulate_preemption=step:1", "--run_inference_only"), "which does not train"),
        (("--simulate_preemption=step:1", "--different_seeds=2"), "no effect on the trials of a fan-out"),
    ],
)
def test_what_makes_no_sense(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    refused = invoke([*HELLO, *flags], folder=tmp_path)
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"RANK": "1"},
    ],
)
def test_one_of_several_processes_is_not_interrupted(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused = invoke([*HELLO, "--simulate_preemption=step:1"], folder=tmp_path)
    assert refused.exit_code == 2
    assert "--simulate_preemption=step:1: torchrun, MPI or SLURM has started this process" in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_other_machines_are_not_interrupted(tmp_path: Path) -> None:
    with memory_backend() as backend:
        refused = invoke([*HELLO, "--simulate_preemption=step:1", "--cluster=memory"], folder=tmp_path)
    assert (refused.exit_code, backend.runs) == (2, [])
    assert "works on this machine only" in refused.stderr


@pytest.mark.slow
def test_two_processes_continue_exactly(tmp_path: Path) -> None:
    shutil.copy(Path(demanding.__file__), tmp_path / "demanding.py")
    flags = ("--model=demanding.Demanding", "--tracking_uri=none", *DDP)
    runs = []
    for name, further in (("plain", ()), ("interrupted", ("--simulate_preemption=step:4",))):
        finished = run_himl(*flags, *further, f"--output_to={tmp_path / name}", cwd=tmp_path)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        runs += list((tmp_path / name).iterdir())
    assert [row["step"] for row in read_record(runs[1]).attempts] == [None, 4]
    assert differences(runs[1], runs[0]) == []
