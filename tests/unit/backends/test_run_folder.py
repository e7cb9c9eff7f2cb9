"""Every run gets a folder of its own."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path

from health_ml.backends.run_folder import create_run_paths, make_unique_folder
from health_ml.environment import RunEnvironment

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone.utc)


def _make(parent: Path) -> str:
    return make_unique_folder(parent, "Model", now=NOW).name


def test_name_is_utc_time_and_model(tmp_path: Path) -> None:
    assert _make(tmp_path / "outputs") == "2026-03-04T050607Z_Model"
    assert _make(tmp_path / "outputs") == "2026-03-04T050607Z_Model_1"


def test_runs_that_start_at_once_get_different_folders(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        names = list(pool.map(_make, [tmp_path] * 24))
    assert len(set(names)) == 24


def test_other_processes_use_the_folder_of_the_first(tmp_path: Path) -> None:
    environment = RunEnvironment(
        rank=1, local_rank=1, run_folder=Path("runs/first"), run_id="first", start_directory=tmp_path
    )
    paths = create_run_paths("Model", environment=environment, project_root=tmp_path / "elsewhere", output_to=None)
    assert paths.outputs == tmp_path / "runs" / "first"
    assert paths.run_id == "first"
    assert paths.checkpoints.is_dir()
