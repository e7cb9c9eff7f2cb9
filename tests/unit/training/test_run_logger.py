"""What reaches the record, and what reaches TensorBoard."""

from __future__ import annotations

import json
from argparse import Namespace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from health_ml.records.record import RunRecord
from health_ml.training.loggers.run_logger import RunLogger
from health_ml.training.trainer import create_lightning_trainer
from tests.unit.training.tiny import TinyData, TinyModel, tiny_container


class Colour(Enum):
    RED = "red"


@pytest.fixture
def record(tmp_path: Path) -> Any:
    record = RunRecord.create(tmp_path / "run", run_id="the_run")
    yield record
    record.close()


def rows_in(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def values_of(rows: list[dict[str, Any]], name: str) -> list[tuple[int, int, float]]:
    return [(row["epoch"], row["step"], row["metrics"][name]) for row in rows if name in row["metrics"]]


def test_metrics_of_a_training_are_in_the_record(tmp_path: Path, record: RunRecord) -> None:
    container = tiny_container(tmp_path, pl_log_every_n_steps=4)
    trainer, results = create_lightning_trainer(container, record=record)

    trainer.fit(TinyModel(), datamodule=TinyData())

    rows = rows_in(record.folder)
    assert values_of(rows, "train/step") == [(0, 3, 3.0), (0, 7, 7.0), (1, 11, 3.0), (1, 15, 7.0)]
    assert [epoch for epoch, _, _ in values_of(rows, "val/loss")] == [0, 1]
    assert values_of(rows, "train/loss")[1][2] == results.results_per_epoch[1]["train/loss"]
    assert all("epoch" not in row["metrics"] for row in rows)


def test_nothing_is_written_to_tensorboard_unless_asked(tmp_path: Path, record: RunRecord) -> None:
    container = tiny_container(tmp_path)
    trainer, _ = create_lightning_trainer(container, record=record)

    trainer.fit(TinyModel(), datamodule=TinyData())

    assert not list(tmp_path.rglob("events.out.tfevents*"))


class ModelWithImages(TinyModel):
    def on_validation_epoch_end(self) -> None:
        assert isinstance(self.logger, TensorBoardLogger)
        assert isinstance(self.logger.experiment, SummaryWriter)
        self.logger.experiment.add_image("picture", torch.zeros(3, 4, 4), self.current_epoch)


def test_images_go_to_tensorboard(tmp_path: Path, record: RunRecord) -> None:
    container = tiny_container(tmp_path)
    trainer, _ = create_lightning_trainer(container, record=record)

    trainer.fit(ModelWithImages(), datamodule=TinyData())

    events = EventAccumulator(str(container.run_paths.lightning_logs))
    events.Reload()
    assert [image.step for image in events.Images("picture")] == [0, 1]
    assert events.Tags()["scalars"] == []


@pytest.mark.parametrize("epoch", [3, 3.0, torch.tensor(3)])
def test_epoch_becomes_that_of_the_row(tmp_path: Path, record: RunRecord, epoch: Any) -> None:
    metrics = {"a": 1.0, "epoch": epoch}

    RunLogger(tmp_path, record=record).log_metrics(metrics, step=5)

    [row] = rows_in(record.folder)
    assert (row["metrics"], row["step"], row["epoch"]) == ({"a": 1.0}, 5, 3)
    assert "epoch" in metrics  # the other loggers get the same dictionary


def test_values_of_other_types_become_numbers(tmp_path: Path, record: RunRecord) -> None:
    logger = RunLogger(tmp_path, record=record)

    logger.log_metrics({"tensor": torch.tensor(0.5), "whole": 2, "group": {"a": torch.tensor(1), "b": 2.5}})

    [row] = rows_in(record.folder)
    assert row["metrics"] == {"tensor": 0.5, "whole": 2.0, "group/a": 1.0, "group/b": 2.5}
    assert (row["step"], row["epoch"]) == (None, None)


def test_no_row_without_metrics(tmp_path: Path, record: RunRecord) -> None:
    RunLogger(tmp_path, record=record).log_metrics({"epoch": 1}, step=1)

    assert rows_in(record.folder) == []


def test_hyperparameters(tmp_path: Path, record: RunRecord) -> None:
    logger = RunLogger(tmp_path / "logs", record=record)

    logger.log_hyperparams(Namespace(rate=0.1, folder=Path("/data"), colour=Colour.RED, nested={"a": [Path("/b")]}))
    logger.log_hyperparams({"more": 1}, metrics={"score": 0.5})

    expected = {"rate": 0.1, "folder": "/data", "colour": "red", "nested": {"a": ["/b"]}}
    rows = rows_in(record.folder, "hyperparameters")
    assert [row["values"] for row in rows] == [expected, {"more": 1}]
    assert yaml.safe_load((tmp_path / "logs" / "hparams.yaml").read_text()) == {**expected, "more": 1}
    assert rows_in(record.folder)[0]["metrics"] == {"score": 0.5}


class ModelWithHyperparameters(TinyModel):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_hyperparameters_of_a_model(tmp_path: Path, record: RunRecord) -> None:
    container = tiny_container(tmp_path)
    trainer, results = create_lightning_trainer(container, record=record)

    trainer.fit(ModelWithHyperparameters(rate=0.25), datamodule=TinyData())

    assert rows_in(record.folder, "hyperparameters")[0]["values"] == {"rate": 0.25}
    assert yaml.safe_load((container.run_paths.lightning_logs / "hparams.yaml").read_text()) == {"rate": 0.25}
    assert results.hyperparams == {"rate": 0.25}


def test_without_a_record_it_is_a_tensorboard_logger(tmp_path: Path) -> None:
    container = tiny_container(tmp_path)
    trainer, _ = create_lightning_trainer(container)

    trainer.fit(ModelWithHyperparameters(rate=0.25), datamodule=TinyData())

    events = EventAccumulator(str(container.run_paths.lightning_logs))
    events.Reload()
    assert "val/loss" in events.Tags()["scalars"]
    assert (container.run_paths.lightning_logs / "hparams.yaml").is_file()
