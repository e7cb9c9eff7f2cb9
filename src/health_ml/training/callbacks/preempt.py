"""Interrupts the training as a batch system does that takes the machine back, where ``--simulate_preemption`` says."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback, LightningModule, Trainer

from health_ml.settings import RECORD_PREEMPTION_DOCUMENT

if TYPE_CHECKING:
    from health_ml.planning.preemption import SimulatedPreemption
    from health_ml.records.record import RunRecord


class Preempt(Callback):
    """Sends this process the signal at its moment, once, after noting that in the record.

    :param preemption: Signal and moment.
    :param record: The record of the run.
    """

    def __init__(self, preemption: SimulatedPreemption, record: RunRecord) -> None:
        self._preemption = preemption
        self._record = record
        self._timer: threading.Timer | None = None
        self._has_come = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock, if the moment is a time."""
        if self._preemption.unit == "seconds":
            self._timer = threading.Timer(self._preemption.number, self._interrupt, [trainer])
            self._timer.daemon = True
            self._timer.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Sends the signal, if the moment is a step or an epoch and has come."""
        if self._is_due(trainer, batch_idx):
            self._interrupt(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops the clock."""
        self._stop()

    def _is_due(self, trainer: Trainer, batch_index: int) -> bool:
        unit, number = self._preemption.unit, self._preemption.number
        if self._has_come or unit == "seconds":
            return False
        if unit == "step":
            return trainer.global_step >= number
        is_middle = batch_index + 1 >= trainer.num_training_batches / 2
        return trainer.current_epoch > number or (trainer.current_epoch == number and is_middle)

    def _interrupt(self, trainer: Trainer) -> None:
        self._has_come = True
        self._record.write_document(
            RECORD_PREEMPTION_DOCUMENT,
            {
                "attempt": self._record.attempt,
                "signal": self._preemption.signal.name,
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
            },
        )
        os.kill(os.getpid(), self._preemption.signal)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
