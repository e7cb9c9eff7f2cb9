"""Fan-outs on this machine: real trials, scheduled from this process."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.inspect import read_progress
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.environment import environment_variables
from health_ml.errors import BackendError, CheckpointError, PlanError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.planning.search_space import TrialParameters
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.trial_log import TrialLog
from tests.helpers.fan_outs import FanOuts, ends, events
from tests.helpers.process import run_himl


@pytest.fixture(scope="module")
def fan_outs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FanOuts]:
    project = FanOuts.create(tmp_path_factory.mktemp("project"))
    yield project
    assert project.server is not None
    project.server.close()


@pytest.fixture(autouse=True)
def nothing_fails(fan_outs: FanOuts) -> None:
    for file in fan_outs.root.glob("fail_*"):
        file.unlink()


def levels(folder: FanOutFolder) -> list[object]:
    """Returns the level of each trial, in order."""
    rows = [json.loads(line) for line in folder.trials_file.read_text().splitlines()]
    return [row["values"]["level"] for row in rows if row["event"] == "started"]


def resolve(text: str, root: Path) -> Path:
    return resolve_checkpoint(CheckpointParser(text), start_directory=root, project_root=root, download_folder=root)


def test_a_grid(fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new("level=3,1,2", primary_metric="val/level", max_concurrent=2)
    assert (result.status, result.exit_code, result.message) == (RunStatus.FINISHED, 0, "")
    assert ends(folder) == [0, 1, 2]
    record = read_record(folder.record)
    assert record.status.status is RunStatus.FINISHED
    expected = {"val/level/mean": 2.25, "val/level/sd": 1.0, "val/level/min": 1.25, "val/level/max": 3.25}
    assert {name: record.last_values[name] for name in expected} == pytest.approx(expected)
    for index in range(3):
        trial = read_record(folder.trial_record(index))
        assert (trial.run_id, trial.status.status) == (f"{folder.run_id}_{index}", RunStatus.FINISHED)
        assert trial.tags["model_name"] == "Tiny"

    rows = list(csv.DictReader(folder.table_file.read_text().splitlines()))
    assert [(row["level"], row["status"], row["val/level"]) for row in rows] == [
        ("3", "FINISHED", "3.25"),
        ("1", "FINISHED", "1.25"),
        ("2", "FINISHED", "2.25"),
    ]
    assert f"Best trial by val/level: 1 (1.25), run {folder.run_id}_1." in fan_outs.lines[-3]
    assert "Trial 0 started: level=3 (1 running, 2 to start)" in fan_outs.lines
    assert any(line.startswith("Trial 1 FINISHED after") and "val/level=1.25" in line for line in fan_outs.lines)
    assert "<h1>Fan-out fan_" in folder.page_file.read_text()

    best = folder.trial_folder(1) / "checkpoints" / "last.ckpt"
    assert os.readlink(folder.best_checkpoint) == "../trials/1/checkpoints/last.ckpt"
    assert resolve(f"{folder.run_id}:best", fan_outs.root) == best
    assert resolve(f"{folder.run_id}_1", fan_outs.root) == best
    with pytest.raises(CheckpointError, match=rf"Its checkpoints are {folder.run_id}:best.ckpt, .*trials/0/"):
        resolve(folder.run_id, fan_outs.root)

    again = fan_outs.run(folder)
    assert again.status is RunStatus.FINISHED
    assert ends(folder) == [0, 1, 2], "nothing is repeated"


def test_a_trial_that_was_noted_and_never_started_is_run(fan_outs: FanOuts) -> None:
    folder = fan_outs.create_fan_out(fan_outs.plan("level=1,2", argv=("--max_epochs=1",), max_concurrent=2))
    record = RunRecord(folder.record, run_id=folder.run_id)
    TrialLog(folder, record).start(TrialParameters(0, (("level", 1),)), slot=0)
    record.close()
    assert fan_outs.run(folder).status is RunStatus.FINISHED
    assert ends(folder) == [0, 1]
    assert [event for event in events(folder) if event[1] == 0] == [
        ("started", 0, 0),
        ("started", 0, 1),
        ("ended", 0, 1),
    ]


@pytest.mark.parametrize(("sampling", "count"), [("random", 3), ("bayesian", 4)])
def test_searches(sampling: str, count: int, fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new(
        "level=uniform(0,1)", sampling=sampling, max_trials=count, primary_metric="val/level", max_concurrent=2
    )
    assert result.exit_code == 0
    assert len(set(levels(folder))) == count
    assert all(0 <= float(str(level)) <= 1 for level in levels(folder))


def test_folds_and_seeds_give_each_trial_its_own(fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new(
        different_seeds=2, crossval_count=2, argv=("--crossval_count=2", "--max_epochs=1"), max_concurrent=2
    )
    assert result.exit_code == 0
    seeds = [read_record(folder.trial_record(index)).tags["effective_random_seed"] for index in range(4)]
    assert seeds == ["1", "2", "2", "3"], "the fold is added to the seed"
    with pytest.raises(CheckpointError, match=r"has no best trial: .* no --primary_metric ranks the trials"):
        resolve(f"{folder.run_id}:best", fan_outs.root)


def test_a_failing_trial_does_not_stop_the_others_and_can_be_run_again(fan_outs: FanOuts) -> None:
    (fan_outs.root / "fail_1").touch()
    folder, result = fan_outs.run_new("level=1,2", max_concurrent=1)
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 1)
    assert result.message == "1 of 2 trials did not finish: 0 (FAILED)."
    assert f"Its log is {folder.trial_log(0)}, which ends with:" in fan_outs.text
    assert "level 1 cannot be trained" in fan_outs.text
    assert read_record(folder.record).status.message == result.message

    fan_outs.run(folder)
    assert ends(folder) == [0, 1], "a trial that failed is not repeated unless one asks for it"
    (fan_outs.root / "fail_1").unlink()
    result = fan_outs.run(folder, is_rerunning_failed=True)
    assert result.status is RunStatus.FINISHED
    assert events(folder)[-2:] == [("started", 0, 1), ("ended", 0, 1)]
    assert len(events(folder)) == 6
    status = read_record(folder.record).status
    assert (status.status, status.attempt) == (RunStatus.FINISHED, 2)


def test_fail_fast_cancels_the_others(fan_outs: FanOuts) -> None:
    (fan_outs.root / "fail_1").touch()
    folder, result = fan_outs.run_new(
        "level=9,1,2", argv=("--pause=0.2", "--max_epochs=100"), max_concurrent=2, is_failing_fast=True
    )
    assert result.status is RunStatus.FAILED
    assert "Trial 1 failed, and --fail_fast was given." in result.message
    assert "1 were not started" in result.message
    assert ends(folder) == [0, 1]
    cancelled = read_record(folder.trial_record(0)).status
    assert cancelled.status in (RunStatus.CANCELLED, RunStatus.KILLED)


SLOWLY = ("--max_epochs=20", "--pause=0.05")


def test_ctrl_c_cancels_all_and_keeps_what_is_done(fan_outs: FanOuts) -> None:
    folder = fan_outs.create_fan_out(
        fan_outs.plan("level=0,1,2", argv=SLOWLY, max_concurrent=1, primary_metric="val/level")
    )

    def interrupt(line: str) -> None:
        if line.startswith("Trial 1 started"):
            wait_for_metrics(folder, 1)
            os.kill(os.getpid(), signal.SIGINT)

    result = fan_outs.run(folder, on_line=interrupt)
    assert (result.status, result.exit_code) == (RunStatus.CANCELLED, 130)
    assert "Best trial by val/level: 0" in fan_outs.text
    assert [trial.status for trial in result.report.trials] == [RunStatus.FINISHED, RunStatus.CANCELLED]
    saved = read_progress(folder.trial_folder(1) / "checkpoints" / "last.ckpt").global_step
    assert 0 < saved < 40
    assert read_record(folder.record).status.status is RunStatus.CANCELLED

    before = [row.epoch for row in read_record(folder.trial_record(1)).metrics]
    faster = fan_outs.plan("level=0,1,2", argv=("--max_epochs=20",), primary_metric="val/level")
    result = fan_outs.run(folder, plan=faster)
    assert result.status is RunStatus.FINISHED
    assert [event for event in events(folder) if event[1] == 1 and event[0] == "started"] == [
        ("started", 1, 0),
        ("started", 1, 1),
    ]
    rows = [row for row in read_record(folder.trial_record(1)).metrics if row.attempt == 1]
    assert rows[0].epoch is not None
    assert rows[0].epoch >= max(epoch for epoch in before if epoch is not None) - 1, "it continues from its checkpoint"


def wait_for_metrics(folder: FanOutFolder, index: int) -> None:
    deadline = time.monotonic() + 30
    while not (folder.trial_record(index) / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_metric_that_nobody_logs_is_said_at_the_end_of_the_first_trial(fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new("level=1..9", primary_metric="val/levl", max_concurrent=1)
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 1)
    assert result.message == (
        "Trial 0 has not logged the primary metric 'val/levl', only train/level, val/level. "
        "Did you mean 'val/level' or 'train/level'? 8 were not started."
    )
    assert ends(folder) == [0]


@pytest.mark.parametrize(
    ("policy", "stopped"),
    [
        ({"type": "bandit", "slack_amount": 1.5, "delay_evaluation": 2}, {2: 2, 3: 2}),
        ({"type": "median_stopping", "evaluation_interval": 3}, {1: 3, 2: 3, 3: 3}),
        ({"type": "truncation_selection", "truncation_percentage": 30}, {3: 1}),
    ],
)
@pytest.mark.parametrize("metric", ["val/level", "train/level"])
def test_early_stopping(policy: dict[str, object], stopped: dict[int, int], metric: str, fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new(
        "level=0,1,2,3", primary_metric=metric, early_termination=policy, max_concurrent=1
    )
    assert result.status is RunStatus.FINISHED
    kind = policy["type"]
    for trial in result.report.trials:
        epochs = {row.epoch for row in read_record(folder.trial_record(trial.index)).metrics}
        interval = stopped.get(trial.index)
        assert len(epochs) == (interval or 4), trial
        assert trial.note.startswith(f"Stopped early by the {kind} policy at interval {interval}:" if interval else "")
        assert bool(trial.note) is bool(interval)
        progress = read_progress(folder.trial_folder(trial.index) / "checkpoints" / "last.ckpt")
        assert progress.global_step == 2 * len(epochs)
    assert f"Stopped early by the {kind} policy" in fan_outs.text


def test_time_limits(fan_outs: FanOuts) -> None:
    folder, result = fan_outs.run_new(
        fan_out={"parameters": {"pause": [1, 0]}, "trial_timeout": 3, "max_concurrent_trials": 2},
        argv=("--max_epochs=20",),
    )
    assert [trial.status for trial in result.report.trials] == [RunStatus.FAILED, RunStatus.FINISHED]
    assert result.report.trials[0].note == "It ran longer than its time limit of 3 seconds."
    assert read_record(folder.trial_record(0)).status.status is RunStatus.FAILED
    _, result = fan_outs.run_new(
        fan_out={"parameters": {"pause": [1, 2, 3]}, "timeout": 1, "max_concurrent_trials": 1},
        argv=("--max_epochs=50",),
    )
    assert result.status is RunStatus.FAILED
    assert result.message.startswith("The search ran longer than its time limit of 1 seconds. 1 of 1 trials did not")


def test_each_trial_has_gpus_of_its_own(fan_outs: FanOuts) -> None:
    with environment_variables({"CUDA_VISIBLE_DEVICES": "3,4,5,6"}):
        folder, result = fan_outs.run_new("level=0,1,2", argv=("--max_epochs=1",), max_num_gpus=2)
    assert result.exit_code == 0
    assert ", 2 at a time with 2 GPUs each, 3 to start." in fan_outs.lines[0]
    machines = [json.loads((folder.trial_folder(index) / "machine.json").read_text()) for index in range(3)]
    assert [machine["gpus"] for machine in machines[:2]] == ["3,4", "5,6"]
    assert machines[2]["gpus"] in ("3,4", "5,6")
    assert machines[2]["argv"][0] == "himl-runner"
    assert machines[2]["argv"][-1] == "--level=2"


def test_a_trial_gives_the_same_as_a_run_alone(fan_outs: FanOuts) -> None:
    plan = JobPlan(
        "HelloWorld",
        ("--model=HelloWorld", "--max_epochs=2", "--tracking_uri=none"),
        search_space=fan_outs.plan(different_seeds=4, max_concurrent=2).search_space,
    )
    folder = fan_outs.create_fan_out(plan)
    assert fan_outs.run(folder).exit_code == 0
    alone = run_himl(*plan.argv, "--random_seed=3", cwd=fan_outs.root)
    assert alone.returncode == 0, alone.stderr
    (run,) = (fan_outs.root / "outputs").glob("*_HelloWorld")

    def rows(record: Path) -> list[object]:
        return [(row.step, row.epoch, row.metrics) for row in read_record(record).metrics]

    assert rows(folder.trial_record(3)) == rows(run / "run")
    assert re.search(r"Z INFO +`Trainer.fit` stopped: ", folder.trial_log(3).read_text()), "messages look the same"
    assert rows(folder.trial_record(2)) != rows(run / "run")
    states = [
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (folder.trial_folder(3), run)
    ]
    for name in ("state_dict", "optimizer_states", "loops"):
        assert str(states[0][name]) == str(states[1][name])


def test_only_one_scheduler_at_a_time(fan_outs: FanOuts) -> None:
    folder = fan_outs.create_fan_out(fan_outs.plan("level=1", argv=("--max_epochs=1",)))
    errors = []

    def run_second(line: str) -> None:
        try:
            fan_outs_again.run(folder)
        except BackendError as error:
            errors.append(str(error))

    fan_outs_again = FanOuts(fan_outs.root)
    assert fan_outs.run(folder, on_line=run_second).exit_code == 0
    assert f"The fan-out {folder.run_id} is run by process {os.getpid()} on " in errors[0]


def test_what_cannot_be_run_is_refused_before_anything_starts(fan_outs: FanOuts, tmp_path: Path) -> None:
    plan = fan_outs.plan("level=1,2")
    with pytest.raises(PlanError, match="--num_nodes=2: the trials of a fan-out run on this machine"):
        fan_outs.create_fan_out(replace(plan, num_nodes=2))
    with pytest.raises(PlanError, match="The plan varies nothing"):
        fan_outs.create_fan_out(replace(plan, search_space=None))
    with pytest.raises(BackendError, match="is no fan-out"):
        fan_outs.run(FanOutFolder(tmp_path))
    secret = fan_outs.create_fan_out(replace(plan, argv=(*plan.argv, "--src_checkpoint=https://host/a?sig=abc")))
    assert "sig=abc" not in secret.plan_file.read_text()
    with pytest.raises(BackendError, match="has secrets, which the record does not keep: --src_checkpoint"):
        fan_outs.run(secret)
