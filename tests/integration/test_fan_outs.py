"""Several runs from one command line: started, shown, repeated, taken up again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from health_ml.backends.trial_processes import living_trials
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import Invocation, invoke

FLAGS = ("--model=HelloWorld", "--max_epochs=2", "--tracking_uri=none")
LIMIT_SECONDS = 120.0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def himl(folder: Path, *arguments: str) -> Invocation:
    return invoke([*arguments], folder=folder)


def fan_out_of(run: Invocation, folder: Path) -> FanOutFolder:
    match = re.search(r"^Fan-out (\S+?): ", run.stdout, re.MULTILINE)
    assert match, run.stdout + run.stderr
    return FanOutFolder(folder / "outputs" / match[1])


def test_seeds_are_trials_that_equal_runs_alone(tmp_path: Path) -> None:
    run = himl(tmp_path, *FLAGS, "--different_seeds=2")
    assert run.exit_code == 0, run.stdout + run.stderr
    folder = fan_out_of(run, tmp_path)
    alone = himl(tmp_path, *FLAGS, "--random_seed=1")
    assert read_record(folder.trial_folder(1)).last_values == alone.record.last_values
    assert read_record(folder.trial_folder(0)).last_values != alone.record.last_values
    typed = read_record(folder.record).document("run")["command_line"]
    assert typed == ["himl-runner", *FLAGS, "--different_seeds=2"]
    assert [folder.table_file.is_file(), folder.page_file.is_file()] == [True, True]

    status = himl(tmp_path, f"--status={folder.run_id}")
    assert (status.exit_code, "random_seed" in status.stdout) == (0, True)
    nothing = himl(tmp_path, f"--rerun_failed={folder.run_id}")
    assert (nothing.exit_code, "No trial" in nothing.stderr) == (2, True)
    assert "is no fan-out" in himl(tmp_path, f"--rerun_failed={alone.record.run_id}").stderr

    inference = himl(
        tmp_path, "--model=HelloWorld", "--tracking_uri=none", "--run_inference_only",
        f"--src_checkpoint={folder.run_id}_1",
    )  # fmt: skip
    assert inference.metrics["test/mse"] == alone.metrics["test/mse"]

    repeated = himl(tmp_path, f"--rerun={folder.run_id}_1")
    assert repeated.exit_code == 0, repeated.stdout + repeated.stderr
    assert repeated.record.last_values == alone.record.last_values
    wrong = himl(tmp_path, f"--rerun={folder.run_id}", "--set=max_concurrent_trials=1", "--set=max_epoch=3")
    assert wrong.exit_code == 2
    assert "max_concurrent_trials is part of how the run was planned" in wrong.stderr
    assert "Did you mean 'max_epochs'" in wrong.stderr

    again = himl(tmp_path, f"--rerun={folder.run_id}")
    assert again.exit_code == 0, again.stdout + again.stderr
    second = fan_out_of(again, tmp_path)
    assert second.run_id != folder.run_id
    assert read_record(second.trial_folder(1)).last_values == read_record(folder.trial_folder(1)).last_values


def test_a_dry_run_shows_the_search_and_starts_nothing(tmp_path: Path) -> None:
    run = himl(tmp_path, *FLAGS, "--sweep=learning_rate=0.1,0.2", "--different_seeds=2", "--print_plan=json")
    assert run.exit_code == 0, run.stderr
    plan = json.loads(run.stdout)
    assert sorted(plan["argv"]) == sorted(FLAGS)
    assert [name for name, _ in plan["search_space"]["dimensions"]] == ["random_seed", "learning_rate"]
    assert not (tmp_path / "outputs").exists()


def test_a_submitted_fan_out_is_followed_like_any_job(tmp_path: Path) -> None:
    run = himl(
        tmp_path, *FLAGS, "--sweep=learning_rate=0.1,0.01", "--primary_metric=val/loss", "--cluster=local",
        "--wait_for_completion",
    )  # fmt: skip
    assert run.exit_code == 0, run.stdout + run.stderr
    assert "[trial 0] " in run.stdout
    assert "Best trial by val/loss: 0" in run.stdout
    run_id = run.stdout.split()[2]
    folder = FanOutFolder(tmp_path / "outputs" / run_id)
    assert read_record(folder.run_folder).status.status is RunStatus.FINISHED
    trial = json.loads(himl(tmp_path, f"--rerun={run_id}_1", "--print_plan=json").stdout)
    whole = json.loads(himl(tmp_path, f"--rerun={run_id}", "--print_plan=json").stdout)
    assert (trial["argv"], trial["search_space"]) == ([*whole["argv"], "--learning_rate=0.01"], None)
    assert trial["snapshot_hash"] == whole["snapshot_hash"] != ""
    best = himl(
        tmp_path, "--model=HelloWorld", "--tracking_uri=none", "--run_inference_only", f"--src_checkpoint={run_id}:best"
    )
    assert best.metrics["test/mse"] == read_record(folder.trial_folder(0)).last_values["test/mse"]


def test_a_killed_scheduler_is_taken_up_again_with_every_trial_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "health_ml.runner", "--model=HelloWorld", "--max_epochs=30", "--tracking_uri=none",
            "--different_seeds=4", "--max_concurrent_trials=1",
        ],
        cwd=tmp_path, env={**os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    folder = _wait_for_trial(tmp_path, 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.trial_folder(3).exists()
    status = himl(tmp_path, f"--status={folder.run_id}").stdout
    assert f"Run {folder.run_id}: KILLED" in status
    cancelled = himl(tmp_path, f"--cancel={folder.run_id}")
    assert cancelled.exit_code == 0, cancelled.stderr
    assert living_trials(folder) == [], "what still ran has ended"
    run = himl(tmp_path, f"--attach={folder.run_id}")
    assert run.exit_code == 0, run.stdout + run.stderr
    rows = [json.loads(line) for line in folder.trials_file.read_text().splitlines()]
    assert len(rows) >= 8
    for index in range(4):
        record = read_record(folder.trial_folder(index))
        assert record.status.status is RunStatus.FINISHED
        epochs = [row.epoch for row in record.metrics if "val/loss" in row.metrics]
        assert epochs == list(range(30)), "each epoch once: nothing is repeated, nothing is lost"
    assert "4 trials" in run.stdout


def _wait_for_trial(folder: Path, index: int) -> FanOutFolder:
    """Returns the fan-out in a folder once one of its trials has trained an epoch."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        for run_folder in (folder / "outputs").glob("*"):
            found = FanOutFolder(run_folder)
            if (found.trial_folder(index) / "checkpoints" / "last.ckpt").exists():
                return found
        time.sleep(0.05)
    raise AssertionError("the trial has not started in time")
