"""A small training in which everything counts that a resumed run could get wrong."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import param
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.aggregation import CatMetric
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from health_ml.lightning_container import LightningContainer

TRAIN_BATCHES = 5
VAL_BATCHES = 3
_PRIME = 1_000_003


class NoisyData(Dataset[Any]):
    """Numbers with noise from all three generators, as augmentations add it.

    :param length: Number of samples.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(1))
        return torch.tensor([index / self._length, 1.0]), torch.tensor([0.1 * noise]), index


class DemandingModel(LightningModule):
    """Has dropout, two groups of parameters, metrics of every kind, and remembers the order of its data.

    :param pause: Seconds that each step sleeps.
    """

    order: torch.Tensor
    monitor = "val/loss"
    """The metric that the schedule watches."""

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self._pause = pause
        self.first = torch.nn.Linear(2, 4)
        self.dropout = torch.nn.Dropout(0.3)
        self.norm = torch.nn.BatchNorm1d(4)
        self.second = torch.nn.Linear(4, 1)
        self.error = MeanAbsoluteError()
        self.values = CatMetric()
        self.group = MetricCollection({"group/mse": MeanSquaredError(), "group/rmse": MeanSquaredError(squared=False)})
        self.val_mean = MeanMetric()
        self.register_buffer("order", torch.tensor(1))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the predictions for a batch of shape (n, 2), of shape (n, 1)."""
        return self.second(self.norm(self.dropout(self.first(x))))

    def on_train_epoch_start(self) -> None:
        """Draws a number, which a resumed run must not draw again."""
        torch.rand(1)

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        """Returns the loss."""
        x, y, index = batch
        time.sleep(self._pause)
        for number in index.tolist():
            self.order = (self.order * 31 + number + 1) % _PRIME
        prediction = self(x)
        loss = torch.nn.functional.mse_loss(prediction, y)
        self.log("train/loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("train/largest", loss, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)
        self.log("train/sum", loss, on_step=False, on_epoch=True, reduce_fx=torch.sum, sync_dist=True)
        self.error(prediction, y)
        self.values.update(loss.detach())
        self.group.update(prediction.detach(), y)
        self.log("train/error", self.error, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Counts in a hook that runs after those of the callbacks."""
        self.batches += 1

    def on_train_epoch_end(self) -> None:
        """Logs metrics that were gathered by hand."""
        self.log("train/spread", self.values.compute().std(), sync_dist=True)
        self.log_dict(self.group.compute())
        self.values.reset()
        self.group.reset()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Logs the loss."""
        x, y, _ = batch
        time.sleep(self._pause)
        loss = torch.nn.functional.mse_loss(self(x), y)
        self.val_mean.update(loss)
        self.log("val/loss", loss, sync_dist=True)
        self.log("val/mean", self.val_mean)

    def test_step(self, batch: Any, batch_index: int) -> None:
        """Logs the loss."""
        x, y, _ = batch
        self.log("test/loss", torch.nn.functional.mse_loss(self(x), y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Returns an optimizer of two groups, with a schedule by epoch and one that watches a metric."""
        groups = [{"params": self.first.parameters()}, {"params": self.second.parameters(), "lr": 0.02}]
        optimizer = torch.optim.Adam(groups, lr=0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        steps = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.9)
        schedulers = [{"scheduler": plateau, "monitor": self.monitor}, {"scheduler": steps, "interval": "step"}]
        return [optimizer], schedulers


class DemandingData(LightningDataModule):
    """Shuffled training data, and loaders for validation and test.

    :param workers: Processes that load data.
    """

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self._workers = workers

    def _loader(self, batches: int, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(NoisyData(4 * batches), batch_size=4, shuffle=shuffle, num_workers=self._workers)

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the loader; with several processes, each of them gets as many batches as one alone."""
        assert self.trainer is not None
        return self._loader(TRAIN_BATCHES * self.trainer.world_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the loader."""
        assert self.trainer is not None
        return self._loader(VAL_BATCHES * self.trainer.world_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the loader."""
        return self._loader(2)


class Counting(Callback):
    """A callback with a state of its own."""

    def __init__(self) -> None:
        self.counts = {"train": 0, "val": 0}

    def on_train_batch_end(self, *_: Any) -> None:
        """Counts."""
        self.counts["train"] += 1

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Counts."""
        if not trainer.sanity_checking:
            self.counts["val"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts."""
        self.counts.update(state_dict)


class Demanding(LightningContainer):
    """Trains the demanding model: gradients of two batches make a step, so that every epoch ends with half of one."""

    pause = param.Number(default=0.0, bounds=(0, None), doc="Seconds that each step sleeps.")
    workers = param.Integer(default=0, bounds=(0, None), doc="Processes that load data.")
    api_token = param.String(default="", doc="A secret that nobody may find in the outputs.")

    def __init__(self, **kwargs: Any) -> None:
        defaults = {"max_epochs": 3, "max_num_gpus": 0, "pl_accumulate_grad_batches": 2, "pl_log_every_n_steps": 1}
        super().__init__(**{**defaults, **kwargs})

    def create_model(self) -> LightningModule:
        """Returns the model."""
        return DemandingModel(self.pause)

    def get_data_module(self) -> LightningDataModule:
        """Returns the data."""
        return DemandingData(self.workers)

    def get_callbacks(self) -> list[Callback]:
        """Returns a callback with a state, and one that keeps the best epoch."""
        return [Counting(), ModelCheckpoint(monitor="val/loss", filename="best")]
