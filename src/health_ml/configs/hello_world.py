"""The smallest complete container: a line fitted to the points of a CSV file that ships with the package.

The file holds 100 points ``y = 1.5 x + 0.5`` with Gaussian noise of standard deviation 0.1, so that a good fit ends
with a mean squared error near 0.01.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import param
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.lightning_container import LightningContainer

TEST_MSE_FILE = "test_mse.txt"
TEST_MAE_FILE = "test_mae.txt"

_TEST_FRACTION = 0.2
_VALIDATION_FRACTION = 0.2
_SPLIT_SEED = 0

Rows = npt.NDArray[np.int64]


def load_points() -> npt.NDArray[np.float32]:
    """Returns the points of the CSV file as an array of shape (100, 2): one row per point, columns x and y."""
    with files(__package__).joinpath("hello_world.csv").open(encoding="utf-8") as file:
        return np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32)


def split_rows(count: int, *, crossval_count: int = 1, crossval_index: int | None = None) -> tuple[Rows, Rows, Rows]:
    """Returns the row numbers for training, validation and test; every row is in exactly one of the three.

    The test rows are always the same. Over all folds of a cross-validation, every other row is used for validation
    exactly once.

    :param count: Number of rows to distribute.
    :param crossval_count: Number of folds; below 2 there is one fixed split into training and validation rows.
    :param crossval_index: Which fold validates.
    """
    shuffled = np.random.default_rng(_SPLIT_SEED).permutation(count)
    test_rows, other_rows = np.split(shuffled, [round(count * _TEST_FRACTION)])
    if crossval_count > 1 and crossval_index is not None:
        fold_of_row = np.arange(len(other_rows)) % crossval_count
        is_validation = fold_of_row == crossval_index
    else:
        is_validation = np.arange(len(other_rows)) < round(count * _VALIDATION_FRACTION)
    return other_rows[~is_validation], other_rows[is_validation], test_rows


class HelloWorldDataModule(LightningDataModule):
    """Serves the points in batches.

    :param batch_size: Number of points per batch.
    :param crossval_count: Number of cross-validation folds.
    :param crossval_index: The fold to validate on, or None without cross-validation.
    """

    def __init__(self, *, batch_size: int, crossval_count: int = 1, crossval_index: int | None = None) -> None:
        super().__init__()
        self.batch_size = batch_size
        points = torch.from_numpy(load_points())
        rows = split_rows(len(points), crossval_count=crossval_count, crossval_index=crossval_index)
        self.train_data, self.val_data, self.test_data = (
            TensorDataset(points[torch.from_numpy(part), 0:1], points[torch.from_numpy(part), 1:2]) for part in rows
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the training points, in a new order in each epoch."""
        return DataLoader(self.train_data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the validation points."""
        return DataLoader(self.val_data, batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the test points."""
        return DataLoader(self.test_data, batch_size=self.batch_size)


class HelloRegression(LightningModule):
    """A straight line, fitted by stochastic gradient descent on the squared error.

    :param learning_rate: Step size of the descent.
    """

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.line = torch.nn.Linear(1, 1)
        self._error_sums = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns y for each x, both of shape (points, 1)."""
        return self.line(x)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns plain gradient descent; the optimizer flags belong to LightningModuleWithOptimizer."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Returns the mean squared error of a batch, and logs it as ``train/loss``."""
        return self._log_loss(batch, "train/loss")

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Returns the mean squared error of a batch, and logs it as ``val/loss``."""
        return self._log_loss(batch, "val/loss")

    def on_test_epoch_start(self) -> None:
        """Forgets the errors of an earlier test."""
        self._error_sums = torch.zeros(3, device=self.device)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Adds up the squared errors, the absolute errors and the number of points of a batch."""
        x, y = batch
        errors = self(x) - y
        self._error_sums += torch.stack([errors.square().sum(), errors.abs().sum(), errors.new_tensor(len(errors))])

    def on_test_epoch_end(self) -> None:
        """Logs ``test/mse`` and ``test/mae``, and writes both to files in the working directory."""
        of_all_ranks = cast("torch.Tensor", self.all_gather(self._error_sums))
        squared, absolute, count = of_all_ranks.reshape(-1, 3).sum(dim=0)
        mse, mae = squared / count, absolute / count
        self.log_dict({"test/mse": mse, "test/mae": mae})
        if self.trainer.is_global_zero:
            Path(TEST_MSE_FILE).write_text(str(mse.item()), encoding="utf-8")
            Path(TEST_MAE_FILE).write_text(str(mae.item()), encoding="utf-8")

    def _log_loss(self, batch: tuple[torch.Tensor, torch.Tensor], name: str) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self(x), y)
        self.log(name, loss, on_step=False, on_epoch=True, sync_dist=self.trainer.world_size > 1, batch_size=len(x))
        return loss


class HelloWorld(LightningContainer):
    """Fits a line to 100 points: 20 epochs, a second or two, nothing to download."""

    batch_size = param.Integer(default=8, bounds=(1, None), doc="Number of points per batch.")
    learning_rate = param.Number(default=0.05, bounds=(0, None), doc="Step size of the gradient descent.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"max_epochs": 20, **kwargs})

    def create_model(self) -> LightningModule:
        """Returns the line, not fitted yet."""
        return HelloRegression(learning_rate=self.learning_rate)

    def get_data_module(self) -> LightningDataModule:
        """Returns the points, split by the cross-validation flags."""
        return HelloWorldDataModule(
            batch_size=self.batch_size, crossval_count=self.crossval_count, crossval_index=self.crossval_index
        )
