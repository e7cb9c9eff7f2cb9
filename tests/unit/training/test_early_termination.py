"""A trial that does worse than the others ends between two epochs, and stays ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.environment import RunEnvironment
from health_ml.planning.fan_out import FanOutOptions, build_search_space
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.records.reader import read_record
from health_ml.records.record import RunRecord, RunStatus
from tests.helpers.containers import LineContainer
from tests.helpers.runs import run_container


@pytest.fixture
def folder(tmp_path: Path) -> FanOutFolder:
    """A fan-out whose first trial did very well."""
    return make_fan_out(tmp_path, {"type": "bandit", "slack_amount": 0.0, "delay_evaluation": 2})


def make_fan_out(root: Path, policy: dict[str, object] | None) -> FanOutFolder:
    folder = FanOutFolder(root / "outputs" / "fan")
    settings = {"primary_metric": "val/loss", "early_termination": policy}
    space = build_search_space(FanOutOptions(different_seeds=2, settings=settings))
    record = RunRecord.create(folder.record, run_id="fan")
    record.write_document("plan", JobPlan("Line", (), search_space=space).to_json())
    record.close()
    folder.trials_file.touch()
    best = RunRecord.create(folder.trial_record(0), run_id="fan_0")
    for epoch in range(5):
        best.log_metrics({"val/loss": 0.0}, step=epoch, epoch=epoch)
    best.close()
    return folder


def trial(folder: FanOutFolder, attempt: int = 0) -> RunEnvironment:
    return RunEnvironment(
        run_id="fan_1", run_folder=folder.trial_folder(1), fan_out_folder=folder.run_folder, attempt=attempt
    )


def epochs(folder: FanOutFolder, attempt: int) -> set[int | None]:
    rows = read_record(folder.trial_record(1)).metrics
    return {row.epoch for row in rows if row.attempt == attempt and "train/loss" in row.metrics}


def test_it_ends_cleanly_and_says_why(folder: FanOutFolder, tmp_path: Path) -> None:
    result = run_container(LineContainer(max_epochs=5), tmp_path, environment=trial(folder))
    assert result.status is RunStatus.FINISHED
    assert epochs(folder, 0) == {0, 1}
    assert result.checkpoint == folder.trial_folder(1) / "checkpoints" / "last.ckpt"
    assert "test/loss" in result.metrics, "it is tested like any other"
    status = read_record(folder.trial_record(1)).status
    assert status.message.startswith("Stopped early by the bandit policy at interval 2: ")
    assert result.messages == (status.message,)


def test_it_stays_stopped_when_it_is_resumed(folder: FanOutFolder, tmp_path: Path) -> None:
    run_container(LineContainer(max_epochs=5), tmp_path, environment=trial(folder))
    again = run_container(LineContainer(max_epochs=5), tmp_path, environment=trial(folder, attempt=1))
    assert epochs(folder, 1) == {1}  # the row of the last epoch, which its checkpoint does not include
    assert again.messages[0].startswith("Stopped early by the bandit policy at interval 2: ")


def test_a_fan_out_without_a_policy_stops_nothing(tmp_path: Path) -> None:
    folder = make_fan_out(tmp_path, None)
    run_container(LineContainer(max_epochs=3), tmp_path, environment=trial(folder))
    assert epochs(folder, 0) == {0, 1, 2}


def test_an_epoch_that_does_not_log_the_metric_is_no_interval(folder: FanOutFolder, tmp_path: Path) -> None:
    container = LineContainer(max_epochs=6, pl_check_val_every_n_epoch=2)
    run_container(container, tmp_path, environment=trial(folder))
    assert epochs(folder, 0) == {0, 1, 2, 3}
