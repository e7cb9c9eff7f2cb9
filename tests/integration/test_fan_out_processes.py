"""Fan-outs whose scheduler is a process of its own: it may be killed, and everything goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from health_ml.backends.fan_out_job import fan_out_command
from health_ml.backends.fan_out_resources import usable_cores
from health_ml.backends.local_jobs import LocalBackend, LocalRunHandle
from health_ml.backends.trial_lock import is_held, read_owner
from health_ml.backends.trial_processes import living_trials
from health_ml.environment import environment_variables
from health_ml.errors import BackendError, PlanError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.runner import main
from health_ml.testing import invoke
from tests.helpers.fan_outs import TINY, FanOuts, ends, events


@pytest.fixture
def fan_outs(tmp_path: Path) -> FanOuts:
    (tmp_path / "tiny.py").write_text(TINY)
    return FanOuts(tmp_path)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def start_scheduler(fan_outs: FanOuts, folder: FanOutFolder, plan: JobPlan) -> subprocess.Popen[str]:
    variables = {"HIML_RUN_FOLDER": str(folder.run_folder), "HIML_START_DIRECTORY": str(fan_outs.root)}
    return subprocess.Popen(
        fan_out_command(plan.argv),
        cwd=fan_outs.root,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_killed_scheduler_leaves_a_fan_out_that_can_be_taken_up(fan_outs: FanOuts) -> None:
    plan = fan_outs.plan("level=0,1,2,3", argv=("--max_epochs=40", "--pause=0.05"), max_concurrent=2)
    folder = fan_outs.create_fan_out(plan)
    scheduler = start_scheduler(fan_outs, folder, plan)
    wait_until(lambda: all((folder.trial_folder(index) / "checkpoints/last.ckpt").exists() for index in (0, 1)))
    with pytest.raises(BackendError, match=f"{folder.run_id} is run by process {scheduler.pid} on "):
        fan_outs.run(folder)
    scheduler.kill()
    scheduler.communicate()

    # One trial goes on by itself, the other one dies with its scheduler.
    adopted, dead = (read_owner(folder.trial_lock(index))["pid"] for index in (0, 1))
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: not is_held(folder.trial_lock(1)))
    assert psutil.pid_exists(adopted)
    assert read_record(folder.record).status.status is RunStatus.KILLED
    assert ends(folder) == []

    faster = fan_outs.plan("level=0,1,2,3", argv=("--max_epochs=40",), max_concurrent=2)
    result = fan_outs.run(folder, plan=faster)
    assert result.status is RunStatus.FINISHED
    assert "Trial 0 is still running and is followed: level=0" in fan_outs.lines
    assert ends(folder) == [0, 1, 2, 3], "every trial ends exactly once"
    started = [(index, attempt) for event, index, attempt in events(folder) if event == "started"]
    assert started == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    record = read_record(folder.trial_record(1))
    assert {row.attempt for row in record.metrics} == {0, 1}
    assert [row["checkpoint"] for row in record.attempts] == [None, "checkpoints/last.ckpt"]
    assert not living_trials(folder)


def test_a_second_signal_exits_at_once(fan_outs: FanOuts) -> None:
    plan = fan_outs.plan("level=0,1", argv=("--pause=60",), max_concurrent=2)
    folder = fan_outs.create_fan_out(plan)
    scheduler = start_scheduler(fan_outs, folder, plan)
    wait_until(lambda: len(living_trials(folder)) == 2)
    wait_until(lambda: all((folder.trial_record(index) / "config.json").exists() for index in (0, 1)))
    time.sleep(0.5)
    scheduler.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert scheduler.poll() is None, "it waits for the checkpoints of the trials"
    scheduler.send_signal(signal.SIGTERM)
    output, _ = scheduler.communicate(timeout=10)
    assert scheduler.returncode == 128 + signal.SIGTERM, output
    wait_until(lambda: not living_trials(folder), 5)
    status = read_record(folder.record).status
    assert status.status is RunStatus.PREEMPTED
    assert "asked twice" in status.message


def test_a_job_with_a_fan_out(fan_outs: FanOuts) -> None:
    (fan_outs.root / "outputs").mkdir()

    def place_code(plan: JobPlan, folder: Path) -> None:
        seen = "\nPath(__file__).with_name('seen').write_text(os.environ['HUB_TOKEN'])\n"
        (folder / "tiny.py").write_text((fan_outs.root / "tiny.py").read_text() + seen)

    backend = LocalBackend(fan_outs.root, place_code=place_code)
    plan = fan_outs.plan("level=0,1,2", argv=("--max_epochs=30", "--pause=0.05"), max_concurrent=2)
    plan = replace(plan, environment_variables=(("HUB_TOKEN", "very-secret"),))
    request = backend.render(plan)
    assert request.body["num_trials"] == 3
    handle = backend.submit(request)
    folder = FanOutFolder(handle.run_folder)
    wait_until(lambda: (folder.trial_record(0) / "metrics.jsonl").exists())
    os.kill(handle.folder.read_processes()["supervisor"]["pid"], signal.SIGKILL)
    wait_until(lambda: handle.status() is RunStatus.KILLED)

    refused = invoke([f"--rerun_failed={handle.run_id}_0"], folder=fan_outs.root)
    assert "is no fan-out" in refused.stderr
    attached = invoke([f"--attach={handle.run_id}", "--cluster=local"], folder=fan_outs.root)
    assert attached.exit_code == 0, attached.stdout + attached.stderr
    assert handle.status() is RunStatus.FINISHED
    lines = attached.stdout.splitlines()
    assert ends(folder) == [0, 1, 2]
    assert "Trial 0 is still running and is followed: level=0" in lines
    for index in range(3):
        assert any(line.startswith(f"[trial {index}] Run {folder.run_id}_{index}: FINISHED") for line in lines)
    assert f"Fan-out {folder.run_id}: FINISHED." in lines
    assert backend.resume(handle.run_id).status() is RunStatus.FINISHED, "there is nothing left to do"
    assert len(events(folder)) == 6

    holds_secret = [
        path for path in folder.run_folder.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()
    ]
    assert sorted(path.relative_to(folder.run_folder).as_posix() for path in holds_secret) == [
        "code/seen",
        "job/job.json",
    ]


def test_cancelling_a_job_cancels_its_trials(fan_outs: FanOuts) -> None:
    backend = LocalBackend(fan_outs.root, place_code=lambda plan, folder: None)
    plan = JobPlan(
        "HelloWorld",
        ("--model=HelloWorld", "--max_epochs=1000000"),
        search_space=fan_outs.plan(different_seeds=3, max_concurrent=2).search_space,
    )
    handle = backend.submit(backend.render(plan))
    assert isinstance(handle, LocalRunHandle)
    folder = FanOutFolder(handle.run_folder)
    wait_until(lambda: all((folder.trial_record(index) / "metrics.jsonl").exists() for index in (0, 1)))
    early = invoke([f"--rerun_failed={handle.run_id}"], folder=fan_outs.root)
    assert (early.exit_code, f"Run {handle.run_id} is still running." in early.stderr) == (2, True)
    handle.cancel()
    assert handle.status() is RunStatus.CANCELLED
    assert not living_trials(folder)
    assert read_record(folder.trial_record(0)).status.status is RunStatus.PREEMPTED
    assert (folder.trial_folder(0) / "checkpoints" / "last.ckpt").exists()
    assert json.loads(handle.folder.exit_file.read_text())["is_cancelled"] is True


def test_a_fan_out_on_several_nodes_is_refused(fan_outs: FanOuts) -> None:
    backend = LocalBackend(fan_outs.root)
    with pytest.raises(PlanError, match="--num_nodes=2"):
        backend.render(replace(fan_outs.plan("level=0,1"), num_nodes=2))


def test_a_model_that_starts_threads_runs_each_trial_in_a_fresh_process(
    fan_outs: FanOuts, caplog: pytest.LogCaptureFixture
) -> None:
    module = fan_outs.root / "tiny.py"
    thread = "\nimport threading\nthreading.Thread(target=threading.Event().wait, name='worker', daemon=True).start()\n"
    module.write_text(module.read_text() + thread)
    _, result = fan_outs.run_new("level=0,1", argv=("--max_epochs=1",), max_concurrent=2)
    assert result.exit_code == 0, fan_outs.text
    assert (
        "Each trial had to load everything by itself, because the code of the model starts threads when it is "
        "imported (worker)." in caplog.text
    )


def test_mlflow_shows_the_trials_below_the_fan_out(fan_outs: FanOuts) -> None:
    from mlflow import MlflowClient

    plan = fan_outs.plan(
        "level=0,1", argv=("--max_epochs=1",), primary_metric="val/level", max_concurrent=2, tracking_uri=""
    )
    with environment_variables({"OMP_NUM_THREADS": None}):
        folder = fan_outs.create_fan_out(plan)
        assert fan_outs.run(folder).exit_code == 0, fan_outs.text
    machine = json.loads((folder.trial_folder(0) / "machine.json").read_text())
    assert machine["threads"] == max(1, usable_cores() // 2), "the processors are shared out"
    client = MlflowClient(f"sqlite:///{fan_outs.root}/mlflow.db")

    def runs() -> dict[str, tuple[str, str | None, float | None]]:
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        return {
            run.info.run_name: (
                run.info.status,
                run.data.tags.get("mlflow.parentRunId"),
                run.data.metrics.get("val/level") or run.data.metrics.get("val/level/mean"),
            )
            for run in client.search_runs([experiment.experiment_id])
        }

    expected = runs()
    parent = read_record(folder.record).document("mirror")["mlflow_run_id"]
    assert expected == {
        folder.run_id: ("FINISHED", None, 1.5),
        f"{folder.run_id}_0": ("FINISHED", parent, 1.0),
        f"{folder.run_id}_1": ("FINISHED", parent, 2.0),
    }
    assert list((folder.trial_folder(0) / "logs" / "Lightning").glob("events.out.tfevents.*"))
    for run_id in (folder.run_id, f"{folder.run_id}_1"):
        synced = invoke([f"--sync={run_id}"], folder=fan_outs.root)
        assert synced.exit_code == 0, synced.stderr
    assert runs() == expected, "carrying over twice changes nothing"
    other = f"sqlite:///{fan_outs.root}/other.db"
    assert main([f"--sync={folder.run_id}_1", f"--tracking_uri={other}", f"--output_to={fan_outs.root}/outputs"]) == 0
    client = MlflowClient(other)
    assert runs() == {f"{folder.run_id}_1": ("FINISHED", None, 2.0)}
