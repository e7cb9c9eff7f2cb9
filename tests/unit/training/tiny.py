"""A model, data and a container that train in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.deep_learning_config import RunPaths
from health_ml.lightning_container import LightningContainer


class TinyModel(LightningModule):
    """A linear model that logs once per step and once per epoch, and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.trained: list[int] = []
        self.validated: list[int] = []
        self.tested: list[int] = []

    def _loss(self, batch: Any) -> torch.Tensor:
        return (self.layer(batch[0]) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.trained.append(batch_idx)
        loss = self._loss(batch)
        self.log("train/step", float(batch_idx), on_step=True, on_epoch=False)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch_idx)
        self.log("val/loss", self._loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.tested.append(batch_idx)
        self.log("test/loss", self._loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TrainOnlyModel(TinyModel):
    """Has nothing to validate."""

    validation_step = LightningModule.validation_step


class TinyData(LightningDataModule):
    """Eight batches of four samples for each stage."""

    def __init__(self, batches: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.data = TensorDataset(torch.rand(4 * batches, 2, generator=generator))

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)

    def test_dataloader(self) -> Any:
        return DataLoader(self.data, batch_size=4)


class TinyContainer(LightningContainer):
    """Trains the tiny model. Set ``callbacks`` and ``arguments`` to what its methods should return."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.callbacks: Any = []
        self.arguments: Any = {}
        self.max_epochs = kwargs.get("max_epochs", 2)

    def create_model(self) -> LightningModule:
        return TinyModel()

    def get_data_module(self) -> LightningDataModule:
        return TinyData()

    def get_callbacks(self) -> Any:
        return self.callbacks

    def get_trainer_arguments(self) -> Any:
        return self.arguments


def tiny_container(folder: Path, **parameters: Any) -> TinyContainer:
    """Returns a container whose run writes below a folder, with the progress bar off unless asked for."""
    container = TinyContainer(**{"pl_progress_bar_refresh_rate": 0, **parameters})
    paths = RunPaths.below(folder, run_id="tiny_run")
    paths.create()
    container.set_run_paths(paths)
    return container
