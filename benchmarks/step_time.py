"""Time of one training step while every step is logged: the record and its mirrors against a logger that does nothing.

Prints on standard error what Lightning's own loggers take in the same loop.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import Row
from health_ml.records.mirror import start_mirror
from health_ml.records.mirror_state import MirrorProgress
from health_ml.records.mlflow_store import open_client
from health_ml.records.record import RunRecord, RunStatus
from health_ml.settings import RECORD_METRICS_FILE
from health_ml.training.loggers.run_logger import RunLogger

STEPS = 400
WARM_UP = 20
REPETITIONS = 9
REPETITIONS_OF_OTHERS = 2


class NoLogger(Logger):
    """Does nothing."""

    name = "none"
    version = 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Does nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


class TimedModel(LightningModule):
    """A small network that logs two metrics per step and notes how long the steps take."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
        self.begin = 0.0
        self.seconds_per_step = 0.0

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Returns the loss."""
        if batch_index == WARM_UP:
            self.begin = time.perf_counter()
        loss = nn.functional.mse_loss(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        self.log("train/norm", loss.detach().sqrt())
        return loss

    def on_train_epoch_end(self) -> None:
        """Notes the time per step after the warm-up, what was logged for the last step included."""
        self.seconds_per_step = (time.perf_counter() - self.begin) / (STEPS - WARM_UP)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def seconds_per_step(logger: Logger, folder: Path) -> float:
    """Returns the time per step of a short training with this logger."""
    data = TensorDataset(torch.rand(STEPS * 8, 32), torch.rand(STEPS * 8, 1))
    model = TimedModel()
    train(model, data, logger, folder)
    return model.seconds_per_step


def train(model: LightningModule, data: TensorDataset, logger: Logger, folder: Path) -> None:
    """Trains for one epoch in batches of eight, with this logger and nothing else that takes time."""
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    ).fit(model, DataLoader(data, batch_size=8))


def wait_for_mirror(record: RunRecord) -> None:
    """Waits until MLflow has the whole record, so that the mirror of one training does not slow the next one."""
    path = record.folder / RECORD_METRICS_FILE
    size = path.stat().st_size if path.exists() else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        progress = MirrorProgress.load(record.folder)
        if progress.mlflow_run_id and progress.positions.get(RECORD_METRICS_FILE, 0) == size:
            return
        time.sleep(0.05)
    raise RuntimeError("The mirror does not follow.")


def measure_record(folder: Path) -> tuple[float, float]:
    """Returns the median time per step with the record and its mirrors, and with no logger, taken in turns."""
    record = RunRecord.create(folder / "run", run_id="benchmark")
    mirror = start_mirror(
        record.folder,
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        experiment="benchmark",
        run_name="benchmark",
        tensorboard_folder=folder / "tensorboard",
        project_root=folder,
    )
    wait_for_mirror(record)
    with_record, with_nothing = [], []
    for _ in range(REPETITIONS):
        with_nothing.append(seconds_per_step(NoLogger(), folder))
        with_record.append(seconds_per_step(RunLogger(folder / "lightning", record=record), folder))
        wait_for_mirror(record)
    record.set_status(RunStatus.FINISHED)
    record.close()
    state = mirror.finish(60)
    assert state.is_complete, state.message
    return statistics.median(with_record), statistics.median(with_nothing)


def measure_others(folder: Path) -> dict[str, float]:
    """Returns the median time per step with each of Lightning's own loggers."""
    store = f"sqlite:///{folder / 'other.db'}"
    open_client(store)
    loggers: dict[str, Callable[[], Logger]] = {
        "TensorBoardLogger": lambda: TensorBoardLogger(folder / "other"),
        "MLFlowLogger on SQLite": lambda: MLFlowLogger(tracking_uri=store),
    }
    return {
        name: statistics.median(seconds_per_step(make(), folder) for _ in range(REPETITIONS_OF_OTHERS))
        for name, make in loggers.items()
    }


def main() -> list[Row]:
    """Returns one row: milliseconds per step with record, TensorBoard and MLflow, and without any logger."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        seconds_per_step(NoLogger(), folder)
        with_record, with_nothing = measure_record(folder)
        for name, seconds in measure_others(folder).items():
            print(f"{name}: {seconds * 1e3:.3f} ms, {seconds / with_nothing:.2f} times as long", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ratio = with_record / with_nothing
    return [Row("training step, all logged", with_record * 1e3, with_nothing * 1e3, ratio, "ratio <= 1.05", "ms")]
