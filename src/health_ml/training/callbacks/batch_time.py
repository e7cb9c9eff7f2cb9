"""Measures how long batches and epochs take, and how long the training waits for data."""

from __future__ import annotations

import logging
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

logger = logging.getLogger(__name__)


class StageTimer:
    """Times the batches of training or of validation, over one epoch after the other.

    :param max_batch_load_time_seconds: A batch that takes longer to load counts as slow.
    :param max_load_time_warnings: Warn about so many slow batches in an epoch at most.
    :param max_load_time_epochs: Warn in so many epochs at most.
    """

    def __init__(
        self, *, max_batch_load_time_seconds: float, max_load_time_warnings: int, max_load_time_epochs: int
    ) -> None:
        self.max_batch_load_time_seconds = max_batch_load_time_seconds
        self.max_load_time_warnings = max_load_time_warnings
        self.max_load_time_epochs = max_load_time_epochs
        self._epochs_with_warning: set[int] = set()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forgets the times of the epoch before."""
        now = time.monotonic()
        self._epoch_start = now
        self._ready_since = now
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self._warnings = 0
        self.batches = 0
        self.slow_batches = 0
        self.load_seconds = 0.0
        self.slow_load_seconds = 0.0
        self.total_batch_seconds = 0.0
        self.max_batch_seconds = 0.0

    def pause(self) -> None:
        """Stops the clock while something else runs, like validation in the middle of a training epoch."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Starts the clock again after :meth:`pause`."""
        if self._paused_at is None:
            return
        pause = time.monotonic() - self._paused_at
        self._paused_seconds += pause
        self._ready_since += pause
        self._paused_at = None

    def batch_loaded(self, batch_index: int, *, epoch: int, stage: str) -> None:
        """Notes that a batch has arrived, and warns if that took long.

        The first one of an epoch may: the processes that load data start then.
        """
        seconds = time.monotonic() - self._ready_since
        self.load_seconds += seconds
        if batch_index == 0:
            logger.info(f"Epoch {epoch} {stage}: the first batch was loaded in {seconds:.2f} s.")
        elif seconds > self.max_batch_load_time_seconds:
            self.slow_batches += 1
            self.slow_load_seconds += seconds
            self._warn(batch_index, seconds, epoch=epoch, stage=stage)

    def batch_processed(self) -> None:
        """Notes that a batch was processed."""
        now = time.monotonic()
        seconds = now - self._ready_since
        self._ready_since = now
        self.batches += 1
        self.total_batch_seconds += seconds
        self.max_batch_seconds = max(self.max_batch_seconds, seconds)

    @property
    def epoch_seconds(self) -> float:
        """Time since the start of the epoch, without pauses."""
        end = time.monotonic() if self._paused_at is None else self._paused_at
        return end - self._epoch_start - self._paused_seconds

    @property
    def average_batch_seconds(self) -> float:
        """Average time per batch, loading included."""
        return self.total_batch_seconds / self.batches if self.batches else 0.0

    def _warn(self, batch_index: int, seconds: float, *, epoch: int, stage: str) -> None:
        may_warn = epoch in self._epochs_with_warning or len(self._epochs_with_warning) < self.max_load_time_epochs
        if self._warnings >= self.max_load_time_warnings or not may_warn:
            return
        self._warnings += 1
        self._epochs_with_warning.add(epoch)
        logger.warning(
            f"Epoch {epoch} {stage}: batch {batch_index} took {seconds:.2f} s to load, more than "
            f"{self.max_batch_load_time_seconds:g} s. Try more workers (num_workers of the DataLoader), or faster "
            f"loading. At most {self.max_load_time_warnings} such warnings per epoch, in at most "
            f"{self.max_load_time_epochs} epochs."
        )


class BatchTimeCallback(Callback):
    """Logs the time per epoch and batch for training and validation, and warns if data arrives too slowly.

    The time to load a batch is that between the end of one batch and the start of the next, so it includes what other
    callbacks do there. Only the first process of a distributed training measures.

    :param max_batch_load_time_seconds: A batch that takes longer to load counts as slow.
    :param max_load_time_warnings: Warn about so many slow batches in an epoch at most.
    :param max_load_time_epochs: Warn in so many epochs at most.
    """

    EPOCH_TIME = "epoch_time [sec]"
    BATCH_TIME = "batch_time [sec]"
    EXCESS_LOADING_TIME = "batch_loading_over_threshold [sec]"
    METRICS_PREFIX = "timing/"
    TRAIN_PREFIX = "train/"
    VAL_PREFIX = "val/"

    def __init__(
        self,
        max_batch_load_time_seconds: float = 0.5,
        max_load_time_warnings: int = 3,
        max_load_time_epochs: int = 5,
    ) -> None:
        super().__init__()
        self.train_timers, self.val_timers = (
            StageTimer(
                max_batch_load_time_seconds=max_batch_load_time_seconds,
                max_load_time_warnings=max_load_time_warnings,
                max_load_time_epochs=max_load_time_epochs,
            )
            for _ in range(2)
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the training."""
        self.train_timers.start_epoch()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes that a batch has arrived."""
        if trainer.is_global_zero:
            self.train_timers.batch_loaded(batch_idx, epoch=trainer.current_epoch, stage="training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes that a batch was processed."""
        self.train_timers.batch_processed()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the times of the training epoch."""
        if trainer.is_global_zero:
            self._log(trainer, self.train_timers, prefix=self.TRAIN_PREFIX, stage="training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock of the training while validation runs."""
        self.train_timers.pause()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the validation."""
        self.val_timers.start_epoch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Notes that a batch has arrived."""
        if trainer.is_global_zero:
            self.val_timers.batch_loaded(batch_idx, epoch=trainer.current_epoch, stage="validation")

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes that a batch was processed."""
        self.val_timers.batch_processed()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the times of the validation."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._log(trainer, self.val_timers, prefix=self.VAL_PREFIX, stage="validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the training again."""
        self.train_timers.resume()

    def _log(self, trainer: Trainer, timer: StageTimer, *, prefix: str, stage: str) -> None:
        """Writes the times to the log and to the loggers.

        It does not use the module's ``log``: only this process measures, and Lightning would warn each time that the
        other processes were not asked.
        """
        seconds = timer.epoch_seconds
        logger.info(
            f"Epoch {trainer.current_epoch} {stage} took {seconds:.2f} s, of which {timer.load_seconds:.2f} s were "
            f"spent waiting for data; {timer.slow_batches} of {timer.batches} batches were slow to load."
        )
        values = {
            self.EPOCH_TIME: seconds,
            f"{self.BATCH_TIME} avg": timer.average_batch_seconds,
            f"{self.BATCH_TIME} max": timer.max_batch_seconds,
            self.EXCESS_LOADING_TIME: timer.slow_load_seconds,
        }
        metrics = {f"{self.METRICS_PREFIX}{prefix}{name}": value for name, value in values.items()}
        for run_logger in trainer.loggers:
            run_logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step)
