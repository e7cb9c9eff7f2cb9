"""A run whose folder disappears or whose disk is full while it trains: it fails, and its record says so."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import pytest
from pytorch_lightning import LightningModule

from health_ml.environment import RunEnvironment
from health_ml.errors import OutputError
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.testing import invoke
from tests.helpers.containers import LineContainer, LineModel
from tests.helpers.disk import small_disk
from tests.helpers.runs import run_container


class DisturbedModel(LineModel):
    def __init__(self, disturb: Callable[[], object]) -> None:
        super().__init__()
        self.disturb = disturb

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.disturb()


class Disturbed(LineContainer):
    """Does something to its run folder at the beginning of epoch 1."""

    def __init__(self, disturb: Callable[[Path], object]) -> None:
        super().__init__(max_epochs=50)
        self.disturb = disturb

    def create_model(self) -> LightningModule:
        return DisturbedModel(lambda: self.disturb(self.outputs_folder))


@pytest.mark.parametrize("has_mirror", [False, True], ids=["without mirror", "with mirror"])
def test_a_moved_folder_is_noticed_and_its_record_is_true(has_mirror: bool, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    container = Disturbed(lambda folder: os.rename(folder, moved))
    begin = time.monotonic()
    with pytest.raises(OutputError, match="the folder of the run was moved or deleted"):
        run_container(container, tmp_path, has_mirror=has_mirror, tracking_uri="" if has_mirror else "none")
    assert time.monotonic() - begin < 45  # nobody waits for a mirror that finds no record
    record = read_record(moved)
    assert record.status.status is RunStatus.FAILED
    assert "was moved or deleted while the run was going on" in record.status.message
    assert max(row.epoch or 0 for row in record.metrics) <= 1
    assert list((tmp_path / "outputs").iterdir()) == []


def test_a_deleted_folder_is_noticed_and_stays_deleted(tmp_path: Path) -> None:
    container = Disturbed(shutil.rmtree)
    with pytest.raises(OutputError, match="the folder of the run was moved or deleted"):
        run_container(container, tmp_path)
    assert container.model.current_epoch == 1
    assert list((tmp_path / "outputs").iterdir()) == []


def fill(folder: Path) -> None:
    """Leaves not one byte on a disk."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with pytest.raises(OSError, match="No space left on device"):
                _write_for_ever(file, bytes(size))


def _write_for_ever(file: FileIO, data: bytes) -> None:
    while True:
        file.write(data)


def test_a_full_disk_ends_with_the_status_failed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="2m") as disk:
        environment = RunEnvironment(run_folder=disk / "job")
        with pytest.raises(OutputError, match="No space left on device"):
            run_container(Disturbed(fill), tmp_path, environment=environment)
        status = read_record(disk / "job").status
        assert (status.status, status.is_derived) == (RunStatus.FAILED, False)
        assert "No space left on device" in status.message


def test_a_restart_on_a_full_disk_names_the_folder_and_changes_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="2m") as disk:
        flags = ["--model=HelloWorld", "--tracking_uri=none"]
        environment = {"HIML_RUN_FOLDER": str(disk / "job")}
        assert invoke([*flags, "--max_epochs=1"], folder=tmp_path, environment=environment).exit_code == 0
        fill(disk)
        done = invoke([*flags, "--max_epochs=2"], folder=tmp_path, environment=environment)
        assert done.exit_code == 2
        assert f"Cannot write the results of the run to {disk}/job: No space left on device." in done.stderr
        assert "choose another folder with HIML_RUN_FOLDER" in done.stderr
        assert read_record(disk / "job").status.status is RunStatus.FINISHED
