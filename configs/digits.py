"""Classifies handwritten digits, 8 by 8 pixels each: a container on real data, read from a dataset folder.

Write the data with ``python configs/make_digits_dataset.py datasets/digits`` and train from the root of the repository
with ``himl-runner --model=configs.digits.Digits --local_datasets=datasets/digits``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import param
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from health_ml.deep_learning_config import LRSchedulerType
from health_ml.errors import DatasetError
from health_ml.lightning_container import LightningContainer, LightningModuleWithOptimizer
from health_ml.utils import log_on_epoch

DATASET_FILE = "digits.csv"
IMAGE_SIZE = 8
LARGEST_PIXEL_VALUE = 16
DIGIT_COUNT = 10
PART_COUNT = 5
"""The images of each digit are dealt to five parts: one for the test, and without cross-validation one to validate."""
SPLIT_SEED = 0

Batch = tuple[torch.Tensor, torch.Tensor]


def find_digits(folder: Path) -> Path:
    """Returns the file with the digits in a dataset folder.

    :raises DatasetError: If it is not there.
    """
    file = folder / DATASET_FILE
    if not file.is_file():
        raise DatasetError(
            f"The dataset folder {folder} has no file {DATASET_FILE}.",
            f"Write it with: python configs/make_digits_dataset.py {folder}",
        )
    return file


def read_digits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the images, of shape (images, 1, 8, 8) with values from 0 to 1, and their digits.

    :param folder: The dataset folder.
    :raises DatasetError: If the folder does not hold the file, or the file something else.
    """
    file = find_digits(folder)
    columns = 1 + IMAGE_SIZE * IMAGE_SIZE
    try:
        rows = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise DatasetError(f"{file} is not a table of numbers: {error}", "Write it again.") from error
    if rows.shape[1:] != (columns,) or not np.isin(rows[:, 0], range(DIGIT_COUNT)).all():
        raise DatasetError(
            f"{file} does not hold digits: its table has the shape {rows.shape}.",
            f"It needs {columns} columns: the digit, and {columns - 1} pixels. Write it again.",
        )
    images = torch.from_numpy(rows[:, 1:] / LARGEST_PIXEL_VALUE).reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE)
    return images, torch.from_numpy(rows[:, 0]).long()


def split_digits(
    digits: npt.NDArray[np.int64], *, crossval_count: int = 1, crossval_index: int | None = None
) -> dict[str, npt.NDArray[np.int64]]:
    """Returns the indices of the images for "train", "val" and "test", each with the same share of every digit.

    The test images are always the same. Over all folds of a cross-validation, every other image validates once.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    parts: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    fold_count, fold = PART_COUNT - 1, 0
    if crossval_count > 1 and crossval_index is not None:
        fold_count, fold = crossval_count, crossval_index
    for digit in range(DIGIT_COUNT):
        indices = generator.permutation(np.flatnonzero(digits == digit))
        test, others = np.split(indices, [len(indices) // PART_COUNT])
        # Each digit starts with another fold, so that the folds have the same size even if there are many of them.
        is_validation = (np.arange(len(others)) + digit) % fold_count == fold
        for name, chosen in (("test", test), ("val", others[is_validation]), ("train", others[~is_validation])):
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(chosen)) for name, chosen in parts.items()}


class DigitsData(LightningDataModule):
    """The images in batches.

    :param folder: The dataset folder.
    :param batch_size: Number of images per batch.
    :param crossval_count: Number of cross-validation folds.
    :param crossval_index: The fold to validate on, or None without cross-validation.
    """

    def __init__(
        self, folder: Path, *, batch_size: int, crossval_count: int = 1, crossval_index: int | None = None
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, digits = read_digits(folder)
        parts = split_digits(digits.numpy(), crossval_count=crossval_count, crossval_index=crossval_index)
        self.parts = {
            name: TensorDataset(images[torch.from_numpy(indices)], digits[torch.from_numpy(indices)])
            for name, indices in parts.items()
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the images to train on, in a new order in each epoch."""
        return DataLoader(self.parts["train"], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the images to validate on."""
        return DataLoader(self.parts["val"], batch_size=self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the images to test on."""
        return DataLoader(self.parts["test"], batch_size=self.batch_size)


class DigitsModel(LightningModuleWithOptimizer):
    """A small convolutional network; the optimizer flags say how it is trained.

    :param channels: Number of channels of the first layer; the second has twice as many.
    :param dropout: Share of the features that training leaves out.
    """

    def __init__(self, channels: int = 16, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, channels, kernel_size=3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(2 * channels * (IMAGE_SIZE // 2) ** 2, DIGIT_COUNT),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns a score per digit, of shape (images, 10)."""
        return self.layers(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        return self._loss(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        return self._loss(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        return self._loss(batch, "test")

    def _loss(self, batch: Batch, part: str) -> torch.Tensor:
        images, digits = batch
        scores = self(images)
        loss = torch.nn.functional.cross_entropy(scores, digits)
        accuracy = (scores.argmax(dim=1) == digits).float().mean()
        log_on_epoch(self, metrics={f"{part}/loss": loss, f"{part}/accuracy": accuracy})
        return loss


class Digits(LightningContainer):
    """Classifies handwritten digits: 10 epochs, some ten seconds, more than 95 % of the test images right."""

    batch_size = param.Integer(default=32, bounds=(1, None), doc="Number of images per batch.")
    channels = param.Integer(default=16, bounds=(1, None), doc="Number of channels of the first layer.")
    dropout = param.Number(default=0.2, bounds=(0, 1), doc="Share of the features that training leaves out.")

    def __init__(self, **kwargs: Any) -> None:
        defaults = {"max_epochs": 10, "l_rate": 1e-2, "l_rate_scheduler": LRSchedulerType.Cosine}
        super().__init__(**{**defaults, **kwargs})

    def setup(self) -> None:
        """Checks that the data is there before anything is built."""
        if not self.local_datasets:
            raise DatasetError(
                "Digits needs a dataset folder.",
                "Write it with: python configs/make_digits_dataset.py datasets/digits, "
                "and give it with: --local_datasets=datasets/digits",
            )
        find_digits(self.local_datasets[0])

    def create_model(self) -> DigitsModel:
        """Returns the network, not trained yet."""
        return DigitsModel(channels=self.channels, dropout=self.dropout)

    def get_data_module(self) -> DigitsData:
        """Returns the images, split by the cross-validation flags."""
        return DigitsData(
            self.local_datasets[0],
            batch_size=self.batch_size,
            crossval_count=self.crossval_count,
            crossval_index=self.crossval_index,
        )
