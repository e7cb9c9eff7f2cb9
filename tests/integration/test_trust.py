"""Whose checkpoints may run code, and what a full disk does to those of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint

from health_ml.checkpoints.inspect import verify
from health_ml.checkpoints.parser import CheckpointParser
from health_ml.checkpoints.signature import _signing_key, is_own
from health_ml.environment import RunEnvironment
from health_ml.errors import CheckpointError, HimlError, OutputError
from health_ml.records.reader import read_record
from health_ml.records.record import RunStatus
from health_ml.training.result import RunResult
from tests.helpers.containers import LineContainer, LineModel
from tests.helpers.disk import largest_file
from tests.helpers.http_server import send, serving
from tests.helpers.runs import run_container


class Payload:
    """Stands for any class in a checkpoint."""


class Mode(Enum):
    FAST = 1


class PayloadModel(LineModel):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = Payload()


class PayloadContainer(LineContainer):
    def create_model(self) -> LightningModule:
        return PayloadModel()


@pytest.fixture
def somebody_else(tmp_path: Path) -> Iterator[None]:
    """Lets what was written before the body of the test be the work of another user."""
    yield
    _signing_key.cache_clear()


def become_another_user(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    _signing_key.cache_clear()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))


def inference(source: Path | str, **parameters: Any) -> LineContainer:
    return LineContainer(run_inference_only=True, src_checkpoint=CheckpointParser(str(source)), **parameters)


@pytest.mark.usefixtures("somebody_else")
def test_the_run_folder_of_another_user_is_foreign_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = run_container(PayloadContainer(max_epochs=1), tmp_path)
    become_another_user(monkeypatch, tmp_path / "me")

    with pytest.raises(CheckpointError, match=r"holds objects of the class .*Payload.*add --trust_checkpoint"):
        run_container(inference(theirs.run_id), tmp_path)

    trusted = run_container(inference(theirs.run_id, trust_checkpoint=True), tmp_path)
    assert trusted.metrics["test/loss"] == theirs.metrics["test/loss"]


@pytest.mark.usefixtures("somebody_else")
def test_a_folder_that_another_user_wrote_is_not_continued_blindly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = run_container(PayloadContainer(max_epochs=1), tmp_path)
    become_another_user(monkeypatch, tmp_path / "me")
    environment = RunEnvironment(run_folder=theirs.paths.outputs, run_id=theirs.run_id)

    with pytest.raises(CheckpointError, match=r"Payload.*add --trust_checkpoint"):
        run_container(PayloadContainer(max_epochs=2), tmp_path, environment=environment)

    again = run_container(PayloadContainer(max_epochs=2, trust_checkpoint=True), tmp_path, environment=environment)
    assert again.status is RunStatus.FINISHED


@pytest.mark.usefixtures("somebody_else")
def test_a_foreign_checkpoint_does_not_take_the_place_of_an_own_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = run_container(PayloadContainer(max_epochs=3), tmp_path)
    become_another_user(monkeypatch, tmp_path / "me")
    mine = run_container(LineContainer(max_epochs=1), tmp_path)
    last = mine.paths.checkpoints / "last.ckpt"
    before = last.read_bytes()
    (mine.paths.checkpoints / "newer.ckpt").write_bytes((theirs.paths.checkpoints / "last.ckpt").read_bytes())

    with pytest.raises(CheckpointError, match=r"Payload.*add --trust_checkpoint"):
        _attempt(mine.paths.outputs, tmp_path, attempt=1, max_epochs=4)

    assert last.read_bytes() == before


@pytest.mark.parametrize("source", ["http://127.0.0.1:9/gone.ckpt", "gone.ckpt", "2026-01-31T120000Z_Gone"])
def test_a_restart_does_not_need_the_checkpoint_that_the_first_start_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str
) -> None:
    folder = tmp_path / "outputs" / "job"
    gone = CheckpointParser(source)
    with pytest.raises(HimlError, match=r"gone\.ckpt|_Gone"):
        run_container(
            LineContainer(max_epochs=2, resume_training=True, src_checkpoint=gone),
            tmp_path,
            environment=RunEnvironment(run_folder=folder, run_id="job", attempt=1),
        )
    _attempt(folder, tmp_path, attempt=0, max_epochs=1)
    container = LineContainer(max_epochs=2, resume_training=True, src_checkpoint=gone)
    environment = RunEnvironment(run_folder=folder, run_id="job", attempt=1)
    again = run_container(container, tmp_path, environment=environment)
    assert again.status is RunStatus.FINISHED
    assert "It is not needed: the run continues from its own checkpoint." in caplog.text


@pytest.mark.usefixtures("somebody_else")
def test_a_job_tests_the_checkpoint_that_it_wrote_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = RunEnvironment(run_folder=tmp_path / "outputs", run_id="job", is_in_azureml=True)
    run_container(PayloadContainer(max_epochs=1), tmp_path, environment=environment)
    become_another_user(monkeypatch, tmp_path / "me")
    again = run_container(PayloadContainer(max_epochs=1), tmp_path, environment=environment)
    assert again.status is RunStatus.FINISHED
    assert "test/loss" in again.metrics


@pytest.mark.usefixtures("somebody_else")
def test_a_restart_in_azureml_continues_what_the_run_wrote_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outputs"
    before = run_container(
        PayloadContainer(max_epochs=1), tmp_path, environment=RunEnvironment(run_folder=folder, run_id="job")
    )
    assert before.status is RunStatus.FINISHED
    become_another_user(monkeypatch, tmp_path / "me")

    environment = RunEnvironment(run_folder=folder, run_id="job", is_in_azureml=True)
    result = run_container(PayloadContainer(max_epochs=2), tmp_path, environment=environment)

    assert torch.load(result.paths.checkpoints / "last.ckpt", weights_only=False)["epoch"] == 1


def test_what_was_downloaded_into_a_run_is_foreign(tmp_path: Path) -> None:
    own = run_container(PayloadContainer(max_epochs=1), tmp_path)
    content = (own.paths.checkpoints / "last.ckpt").read_bytes()
    with serving(lambda handler, _: send(handler, content)) as server:
        url = f"{server.url}/a.ckpt"
        with pytest.raises(CheckpointError, match=r"Payload.*add --trust_checkpoint"):
            run_container(inference(url), tmp_path)
        assert run_container(inference(url, trust_checkpoint=True), tmp_path).status is RunStatus.FINISHED


@pytest.mark.parametrize("flags", [{"run_inference_only": True}, {"resume_training": True, "max_epochs": 3}])
def test_paths_and_enums_of_foreign_checkpoints_load(tmp_path: Path, flags: dict[str, Any]) -> None:
    own = run_container(LineContainer(max_epochs=1), tmp_path)
    content = torch.load(own.paths.checkpoints / "last.ckpt", weights_only=True)
    values = {"mode": Mode.FAST, "data": Path("/data")}
    torch.save({**content, "hyper_parameters": values}, tmp_path / "foreign.ckpt")

    container = LineContainer(src_checkpoint=CheckpointParser(str(tmp_path / "foreign.ckpt")), **flags)

    assert run_container(container, tmp_path).status is RunStatus.FINISHED


class ManyCheckpoints(LineContainer):
    def get_callbacks(self) -> Any:
        return [ModelCheckpoint(monitor="val/loss", filename="{epoch}", save_top_k=-1)]


def test_every_checkpoint_of_a_run_is_noted_with_a_signature(tmp_path: Path) -> None:
    result = run_container(ManyCheckpoints(max_epochs=3), tmp_path)

    rows = [json.loads(line) for line in (result.paths.record / "checkpoints.jsonl").read_text().splitlines()]
    names = {"epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"}
    assert {row["name"] for row in rows} == {*names, "autosave.ckpt"}
    for name in names:
        path = result.paths.checkpoints / name
        assert is_own(path)
        last_row = [row for row in rows if row["name"] == name][-1]
        assert last_row["bytes"] == path.stat().st_size
        assert last_row["epoch"] == torch.load(path, weights_only=True)["epoch"]


class SettingsModel(LineModel):
    def __init__(self, hub_token: str, data: Path, mode: Mode, settings: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class SettingsContainer(LineContainer):
    def create_model(self) -> LightningModule:
        return SettingsModel("a1b2c3d4e5f6a7b8c9d0", Path("/data"), Mode.FAST, self)


def test_a_model_with_any_parameters_is_loaded_by_lightning(tmp_path: Path) -> None:
    result = run_container(SettingsContainer(max_epochs=1), tmp_path)

    model = SettingsModel.load_from_checkpoint(result.paths.checkpoints / "last.ckpt")

    assert (model.hparams["data"], model.hparams["mode"], model.hparams["hub_token"]) == ("/data", 1, "***")
    assert model.hparams["settings"]["max_epochs"] == 1
    assert b"a1b2c3d4e5f6a7b8c9d0" not in (result.paths.checkpoints / "last.ckpt").read_bytes()


# --- a full disk ------------------------------------------------------------------------------------------------------


class GrowingModel(LineModel):
    """Its checkpoint of the second epoch does not fit on the disk any more."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.current_epoch == 1:
            checkpoint["large"] = torch.zeros(1_000_000)


class GrowingContainer(LineContainer):
    own_callbacks: Any = ()
    model_class: type[LightningModule] = GrowingModel

    def create_model(self) -> LightningModule:
        return self.model_class()

    def get_callbacks(self) -> Any:
        return list(self.own_callbacks)


@pytest.mark.parametrize("has_own", [False, True])
def test_a_disk_that_becomes_full_stops_the_run_and_keeps_the_previous_checkpoint(
    tmp_path: Path, has_own: bool
) -> None:
    container = GrowingContainer(max_epochs=3)
    name = "last.ckpt"
    if has_own:
        container.own_callbacks = [ModelCheckpoint(filename="mine", enable_version_counter=False)]
        name = "mine.ckpt"

    with largest_file(1_000_000), pytest.raises(OutputError, match=rf"{name}: File too large\. The previous") as caught:
        run_container(container, tmp_path)

    assert "Free some space" in caught.value.hint
    (run,) = (tmp_path / "outputs").iterdir()
    status = read_record(run).status
    assert (status.status, "File too large" in status.message) == (RunStatus.FAILED, True)
    for path in (run / "checkpoints").iterdir():
        verify(path)
        assert torch.load(path, weights_only=True)["epoch"] == 0
    small = GrowingContainer(max_epochs=2)
    small.model_class = LineModel
    again = run_container(small, tmp_path, environment=RunEnvironment(run_folder=run, run_id=run.name))
    assert again.status is RunStatus.FINISHED


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumped_back_between_attempts_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    folder = tmp_path / "outputs" / "job"
    first = _attempt(folder, tmp_path, attempt=0, max_epochs=2)
    assert first.status is RunStatus.FINISHED
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86_400 * 365)

    with caplog.at_level(logging.INFO):
        second = _attempt(folder, tmp_path, attempt=1, max_epochs=3)

    record = read_record(folder)
    assert second.status is record.status.status is RunStatus.FINISHED
    assert record.status.attempt == 1
    assert [row.epoch for row in record.metrics if "train/loss" in row.metrics] == [0, 1, 2]
    assert [row.attempt for row in record.metrics if "train/loss" in row.metrics] == [0, 1, 1]  # written before the row


def _attempt(folder: Path, project: Path, *, attempt: int, max_epochs: int) -> RunResult:
    environment = RunEnvironment(run_folder=folder, run_id="job", attempt=attempt)
    return run_container(LineContainer(max_epochs=max_epochs), project, environment=environment)


def test_a_damaged_key_stops_a_run_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "state" / "health_ml").mkdir(parents=True)
    (tmp_path / "state" / "health_ml" / "checkpoint-key").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged: it has not 32 bytes") as caught:
        run_container(LineContainer(), tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "outputs").exists()
