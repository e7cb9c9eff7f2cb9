"""Ids of trials lead to their folders, and leave the ids of other runs alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.errors import RunNotFoundError
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.run_store import find_run_folder


def make_fan_out(root: Path, run_id: str, trials: int) -> FanOutFolder:
    folder = FanOutFolder(root / "outputs" / run_id)
    for index in range(trials):
        folder.trial_record(index).mkdir(parents=True)
    folder.record.mkdir()
    folder.trials_file.touch()
    return folder


def test_a_trial_is_found_by_its_id(tmp_path: Path) -> None:
    folder = make_fan_out(tmp_path, "2025_Hello_1", 11)
    assert folder.trial_run_id(10) == "2025_Hello_1_10"
    for index in (0, 10):
        assert find_run_folder(f"2025_Hello_1_{index}", tmp_path) == folder.trial_folder(index)
    assert folder.trial_indices() == list(range(11))
    assert FanOutFolder.of_trial(folder.trial_folder(3)) == folder
    assert FanOutFolder.of_trial(folder.run_folder) is None


@pytest.mark.parametrize("run_id", ["2025_Hello_11", "2025_Hello_01", "2025_Hello_x", "2025_Hello_", "_1", "2025_1"])
def test_other_ids_are_unknown(tmp_path: Path, run_id: str) -> None:
    make_fan_out(tmp_path, "2025_Hello", 2)
    with pytest.raises(RunNotFoundError, match=rf"There is no run '{run_id}' in"):
        find_run_folder(run_id, tmp_path)


def test_a_run_of_that_name_wins(tmp_path: Path) -> None:
    make_fan_out(tmp_path, "2025_Hello", 2)
    run = tmp_path / "outputs" / "2025_Hello_1"
    (run / "run").mkdir(parents=True)
    assert find_run_folder("2025_Hello_1", tmp_path) == run


def test_a_folder_of_trials_in_a_run_that_is_no_fan_out_has_no_trials(tmp_path: Path) -> None:
    folder = make_fan_out(tmp_path, "2025_Hello", 2)
    folder.trials_file.unlink()
    assert not folder.exists
    assert FanOutFolder.of_trial(folder.trial_folder(0)) is None
    with pytest.raises(RunNotFoundError, match="There is no run '2025_Hello_0'"):
        find_run_folder("2025_Hello_0", tmp_path)
