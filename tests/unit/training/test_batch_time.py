"""The times of batches and epochs, measured on a real training with slow data."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from health_ml.training.callbacks.batch_time import BatchTimeCallback
from health_ml.training.loggers.storing_logger import StoringLogger
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyContainer, TinyData, TinyModel, TrainOnlyModel, tiny_container

NAMES = {
    "epoch_time [sec]",
    "batch_time [sec] avg",
    "batch_time [sec] max",
    "batch_loading_over_threshold [sec]",
}


class SlowItems(Dataset[Any]):
    """Four items, of which the third takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        if index == 2:
            time.sleep(self.seconds)
        return (torch.ones(2),)


class SlowData(TinyData):
    def train_dataloader(self) -> Any:
        return DataLoader(SlowItems(0.15))


def train(
    container: TinyContainer, callback: BatchTimeCallback, model: TinyModel | None = None, data: Any = None
) -> StoringLogger:
    container.callbacks = [callback]
    trainer, results = create_lightning_trainer(container)
    trainer.fit(model or TinyModel(), datamodule=data or SlowData())
    return results


def test_metrics_of_training_and_validation(tmp_path: Path) -> None:
    results = train(tiny_container(tmp_path), BatchTimeCallback(max_batch_load_time_seconds=0.1))

    for epoch in (0, 1):
        training = results.extract_by_prefix(epoch, "timing/train/")
        validation = results.extract_by_prefix(epoch, "timing/val/")
        assert set(training) == NAMES
        assert set(validation) == NAMES
        assert 0.15 <= training["batch_loading_over_threshold [sec]"] < 5
        assert 0.15 <= training["batch_time [sec] max"] < 5
        assert 0.15 / 4 <= training["batch_time [sec] avg"] < training["batch_time [sec] max"]
        assert training["epoch_time [sec]"] >= 0.15
        assert validation["batch_loading_over_threshold [sec]"] == 0


def test_training_without_validation(tmp_path: Path) -> None:
    results = train(tiny_container(tmp_path, max_epochs=1), BatchTimeCallback(), TrainOnlyModel())

    assert set(results.extract_by_prefix(0, "timing/train/")) == NAMES
    assert not results.extract_by_prefix(0, "timing/val/")


class SlowValidation(TinyModel):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        time.sleep(0.1)


def test_validation_does_not_count_as_training(tmp_path: Path) -> None:
    container = tiny_container(tmp_path, max_epochs=1)
    container.arguments = {"val_check_interval": 4}  # two rounds of validation, 1.6 s together

    results = train(container, BatchTimeCallback(max_batch_load_time_seconds=0.7), SlowValidation(), TinyData())

    training = results.extract_by_prefix(0, "timing/train/")
    assert training["epoch_time [sec]"] < 1.0
    assert training["batch_time [sec] max"] < 0.7
    assert training["batch_loading_over_threshold [sec]"] == 0


@pytest.mark.parametrize(("per_epoch", "epochs", "warnings"), [(3, 5, 3), (0, 5, 0), (3, 2, 2), (3, 0, 0)])
def test_number_of_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, per_epoch: int, epochs: int, warnings: int
) -> None:
    train(tiny_container(tmp_path, max_epochs=3), BatchTimeCallback(0.1, per_epoch, epochs))

    lines = [entry.getMessage() for entry in caplog.records if "s to load" in entry.getMessage()]
    assert len(lines) == warnings
    assert all("batch 2 took 0." in line for line in lines)


def test_summary_of_each_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(tiny_container(tmp_path, max_epochs=1), BatchTimeCallback(max_batch_load_time_seconds=0.1))

    assert "Epoch 0 training: the first batch was loaded in" in caplog.text
    assert "1 of 4 batches were slow to load" in caplog.text
    assert "Epoch 0 validation took" in caplog.text
