"""From what the user wrote to a file on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_ml.checkpoints.fetch import resolve_checkpoint
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.environment import working_directory
from health_ml.errors import ArgumentsError, CheckpointError, RunNotFoundError
from tests.unit.checkpoints.conftest import save


def resolve(text: str, root: Path, **arguments: object) -> Path:
    return resolve_checkpoint(
        CheckpointParser(text),
        start_directory=root,
        project_root=root,
        download_folder=root / "downloads",
        **arguments,  # type: ignore[arg-type]
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "run_1"
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "custom/deep/x.ckpt"):
        save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("run_1", "checkpoints/last.ckpt"),
        ("run_1:best.ckpt", "checkpoints/best.ckpt"),
        ("run_1:custom/deep/x.ckpt", "custom/deep/x.ckpt"),
        ("run_1:outputs/checkpoints/last.ckpt", "checkpoints/last.ckpt"),
        ("outputs/run_1/checkpoints/best.ckpt", "checkpoints/best.ckpt"),
        ("./outputs/../outputs/run_1/checkpoints/best.ckpt", "checkpoints/best.ckpt"),
    ],
)
def test_every_form_leads_to_the_file(tmp_path: Path, run: Path, text: str, file: str) -> None:
    assert resolve(text, tmp_path) == run / file
    assert resolve(str(run / file), tmp_path) == run / file


def test_relative_files_start_where_the_user_typed_the_command(tmp_path: Path, checkpoint: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with working_directory(elsewhere):
        assert resolve("given.ckpt", tmp_path) == checkpoint
    with pytest.raises(CheckpointError, match=rf"There is no checkpoint file {elsewhere}/given\.ckpt\. Accepted are"):
        resolve("given.ckpt", elsewhere)


def test_output_to_is_searched_first(tmp_path: Path, run: Path) -> None:
    other = save(tmp_path / "results" / "run_1" / "checkpoints" / "last.ckpt")
    assert resolve("run_1", tmp_path, output_to=tmp_path / "results") == other


def test_a_missing_run_gets_the_nearest_ones(tmp_path: Path, run: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"There is no run 'run_2' in .* Did you mean 'run_1'\?"):
        resolve("run_2:best.ckpt", tmp_path)


def test_a_missing_file_gets_the_checkpoints_of_the_run(tmp_path: Path, run: Path) -> None:
    choices = r"Its checkpoints are run_1:best\.ckpt, run_1:last\.ckpt, run_1:custom/deep/x\.ckpt\."
    with pytest.raises(CheckpointError, match=rf"'run_1' has no file checkpoints/none\.ckpt in /.*\. {choices}"):
        resolve("run_1:none.ckpt", tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "empty").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"It has no checkpoints at all\."):
        resolve("empty", tmp_path)


def test_many_checkpoints_are_counted(tmp_path: Path, run: Path) -> None:
    for index in range(12):
        (run / "checkpoints" / f"epoch={index}.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r" and 5 more\."):
        resolve("run_1:none.ckpt", tmp_path)


def test_nothing_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match=r"^The checkpoint is empty\. Accepted are"):
        resolve("", tmp_path)


class FolderStore:
    """Another store of runs, as a tracking service would be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []

    def fetch_checkpoint(self, run_id: str, remote_path: str, download_folder: Path) -> Path | None:
        self.asked.append((run_id, remote_path))
        path = self.folder / run_id / remote_path
        return path if path.is_file() else None


def test_other_stores_are_asked_for_runs_that_are_not_here(tmp_path: Path, run: Path) -> None:
    remote = save(tmp_path / "remote" / "cloud_1" / "checkpoints" / "last.ckpt")
    first, second = FolderStore(tmp_path / "nothing"), FolderStore(tmp_path / "remote")
    assert resolve("cloud_1", tmp_path, other_stores=[first, second]) == remote
    assert first.asked == [("cloud_1", "checkpoints/last.ckpt")]
    assert resolve("run_1", tmp_path, other_stores=[first]) == run / "checkpoints" / "last.ckpt"
    assert len(first.asked) == 1
    with pytest.raises(RunNotFoundError, match=r"There is no run 'cloud_2'"):
        resolve("cloud_2", tmp_path, other_stores=[first, second])
