"""``--resume_training`` and a restart in the same folder end with the metrics of a run that never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.settings import ENV_RUN_FOLDER
from health_ml.testing import Invocation, invoke


def run(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> Invocation:
    finished = invoke(["--model=HelloWorld", "--tracking_uri=none", *flags], folder=folder, environment=environment)
    assert finished.exit_code == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Invocation:
    """A run of five epochs."""
    return run(tmp_path_factory.mktemp("uninterrupted"), "--max_epochs=5")


def test_resumed_run(uninterrupted: Invocation, tmp_path: Path) -> None:
    first = run(tmp_path, "--max_epochs=3")
    assert first.result is not None
    second = run(tmp_path, "--max_epochs=5", "--resume_training", f"--src_checkpoint={first.result.run_id}")
    assert [row.epoch for row in second.record.metrics if "train/loss" in row.metrics] == [3, 4]
    assert second.metrics == uninterrupted.metrics


def test_a_restart_without_the_checkpoints_says_that_it_starts_from_the_beginning(tmp_path: Path) -> None:
    environment = {ENV_RUN_FOLDER: "outputs/job"}
    first = run(tmp_path, "--max_epochs=1", environment=environment)
    assert "An earlier attempt" not in first.stdout + first.stderr
    folder = tmp_path / "outputs" / "job" / "checkpoints"
    for checkpoint in folder.iterdir():
        checkpoint.unlink()
    again = run(tmp_path, "--max_epochs=1", environment=environment)
    expected = f"has written checkpoints to {folder}, the last one in epoch 0 at step 8, and there is none"
    assert expected in again.stdout + again.stderr
    assert "this attempt starts from the beginning" in again.stdout + again.stderr


def test_restarted_run(uninterrupted: Invocation, tmp_path: Path) -> None:
    environment = {ENV_RUN_FOLDER: "outputs/job"}
    run(tmp_path, "--max_epochs=3", environment=environment)
    restarted = run(tmp_path, "--max_epochs=5", environment=environment)
    assert restarted.run_folder == tmp_path / "outputs" / "job"
    assert restarted.metrics == uninterrupted.metrics
