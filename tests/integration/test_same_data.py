"""A container that draws its data at random gets the same data whenever it is asked, whatever happened before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.experiment_config import RunnerMode
from health_ml.training.result import RunResult
from tests.helpers.containers import LineContainer
from tests.helpers.runs import run_container


class RandomData(LightningDataModule):
    """Draws noise when it is made, and splits its points when Lightning sets it up for a stage."""

    splits: list[tuple[str, list[int]]]

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.randn(32, 1)
        self.splits = []

    def setup(self, stage: str) -> None:
        self.order = torch.randperm(32)
        self.splits.append((stage, self.order.tolist()))

    def _loader(self, start: int, end: int, *, shuffle: bool = False) -> DataLoader[Any]:
        x = self.x[self.order[start:end]]
        return DataLoader(TensorDataset(x, x**2), batch_size=4, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(0, 16, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(16, 24)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(24, 32)


class RandomContainer(LineContainer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made: list[RandomData] = []

    def get_data_module(self) -> LightningDataModule:
        self.made.append(RandomData())
        return self.made[-1]

    def get_eval_data_module(self) -> LightningDataModule:
        return self.get_data_module()


@pytest.mark.parametrize("max_epochs", [1, 3])
def test_training_and_test_see_the_same_data(max_epochs: int, tmp_path: Path) -> None:
    container = RandomContainer(max_epochs=max_epochs, run_extra_val_epoch=True)
    run_container(container, tmp_path)
    in_training, in_test = container.made
    assert torch.equal(in_training.x, in_test.x)
    splits = dict(in_training.splits) | dict(in_test.splits)
    assert set(splits) == {"fit", "validate", "test"}
    assert splits["fit"] == splits["validate"] == splits["test"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("trained")
    return run_container(RandomContainer(max_epochs=2), folder), folder


def again(trained: tuple[RunResult, Path], *, mode: RunnerMode = RunnerMode.TRAIN, **kwargs: Any) -> RunResult:
    result, folder = trained
    container = RandomContainer(src_checkpoint=CheckpointParser(str(result.checkpoint)), **kwargs)
    return run_container(container, folder, mode=mode)


def test_inference_reproduces_the_test_metrics(trained: tuple[RunResult, Path]) -> None:
    inferred = again(trained, run_inference_only=True)
    assert inferred.metrics["test/loss"] == trained[0].metrics["test/loss"]
    assert inferred.metrics["val/loss"] == trained[0].metrics["val/loss"]


def test_eval_full_reproduces_the_test_metrics(trained: tuple[RunResult, Path]) -> None:
    assert again(trained, mode=RunnerMode.EVAL_FULL).metrics["test/loss"] == trained[0].metrics["test/loss"]
