"""Small containers and models that the tests of a run's life share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.lightning_container import LightningContainer


class LineModel(LightningModule):
    """Fits a line; logs a loss in each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def _loss(self, batch: Any, name: str) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x), y)
        self.log(name, loss, on_epoch=True, on_step=False, sync_dist=True, batch_size=len(x))
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._loss(batch, "train/loss")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "val/loss")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._loss(batch, "test/loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class LineData(LightningDataModule):
    """Sixteen points of a line, in four batches."""

    def _loader(self, *, shuffle: bool = False) -> DataLoader[Any]:
        x = torch.linspace(-1, 1, 16).reshape(-1, 1)
        return DataLoader(TensorDataset(x, 2 * x + 1), batch_size=4, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader()


class LineContainer(LightningContainer):
    """A container that trains in a fraction of a second."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"max_epochs": 2, "max_num_gpus": 0, **kwargs})

    def create_model(self) -> LightningModule:
        return LineModel()

    def get_data_module(self) -> LightningDataModule:
        return LineData()


def with_run_folder(container: LightningContainer, folder: Path) -> LightningContainer:
    """Returns the container after telling it to write below a folder."""
    from health_ml.deep_learning_config import RunPaths

    paths = RunPaths.below(folder, folder.name)
    paths.create()
    container.set_run_paths(paths)
    return container
