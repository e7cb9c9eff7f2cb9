"""Stops training at the next batch boundary after a signal, with a checkpoint to continue from."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.trainer.states import TrainerFn
from torch import distributed

from health_ml.training.loop_hooks import before, log_batch, log_epoch
from health_ml.training.signals import RunInterrupted, SignalGuard


class StopOnSignal(Checkpoint):
    """Saves a checkpoint at the next batch boundary after a signal and then ends the run.

    With several processes, all of them have to stop after the same batch, whichever of them got the signal. They
    agree on that with a reduction on the CPU that overlaps with the next batch, so that no GPU waits for it.

    Lightning calls a Checkpoint at the end of an epoch after the model, so that what the model does there is not lost.

    :param guard: Knows whether a signal came.
    :param checkpoint: The file to write, or None if the run keeps no checkpoints.
    """

    def __init__(self, guard: SignalGuard, checkpoint: Path | None) -> None:
        super().__init__()
        self._guard = guard
        self._checkpoint = checkpoint
        self._group: Any = None
        self._votes: torch.Tensor | None = None
        self._pending: Any = None
        self._agreed: int | None = None
        self._is_validation_open = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Turns off Lightning's own handling of SIGTERM, which saves nothing and ends with exit code 0."""
        connector = trainer._signal_connector
        connector.register_signal_handlers = _do_nothing  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the channel between the processes, and hooks into the end of a batch after the hook of the model."""
        if trainer.world_size > 1 and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")
        before(trainer._logger_connector, "on_batch_end", lambda: self._after_batch(trainer))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save."""
        self._guard.start_deferring()
        self._is_validation_open = False

    def _after_batch(self, trainer: Trainer) -> None:
        """Stops after a batch, unless it is the last one of the training epoch: what follows it belongs to the epoch.

        In the middle of a validation, which a resumed run repeats, it stops only if there is one process: the others
        may have a different number of validation batches.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.validating:
            if self._group is None:
                self._stop_if_agreed(trainer)
            return
        self._ask_all()
        if not trainer.is_last_batch:
            self._stop_if_agreed(trainer, log=log_batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before the validation, which a resumed run starts with."""
        if trainer.sanity_checking:
            return
        self._is_validation_open = True
        self._stop_if_agreed(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that a checkpoint from here on includes the validation.

        Not in ``on_validation_end``, where checkpoints of the user are written before this callback has its turn.
        """
        self._is_validation_open = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops between two epochs."""
        self._ask_all()
        self._stop_if_agreed(trainer, log=log_epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is complete: from here on a signal interrupts what follows."""
        self._guard.stop_deferring()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Nothing is left to save."""
        self._guard.stop_deferring()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Makes a run that resumes from right before or within a validation do all of it.

        Lightning would go on with the next validation batch and report the metrics of the rest only, or skip it.
        """
        if "loops" not in checkpoint:
            return
        progress = checkpoint["loops"]["fit_loop"]
        if _is_validation_next(trainer):
            for counters in _counters(progress["epoch_loop.batch_progress"]):
                counters["completed"] = counters["processed"]
        elif not self._is_validation_open:
            return
        validation = progress["epoch_loop.val_loop.batch_progress"]
        for counters in _counters(validation):
            counters.update(ready=1, started=1, processed=0, completed=0)
        validation["is_last_batch"] = False

    def _ask_all(self) -> None:
        """Finds out whether any process got a signal; with several of them, up to one batch late."""
        if self._group is None:
            self._agreed = self._guard.received
            return
        if self._pending is not None and self._votes is not None:
            self._pending.wait()
            votes = int(self._votes.item())
            if votes:
                self._agreed = votes
        self._votes = torch.tensor(self._guard.received or 0)
        self._pending = distributed.all_reduce(
            self._votes, op=distributed.ReduceOp.MAX, group=self._group, async_op=True
        )

    def _stop_if_agreed(self, trainer: Trainer, log: Callable[[Trainer], None] | None = None) -> None:
        """Saves a checkpoint and ends the run, if it was asked to stop.

        :param log: Logs the metrics that the loop would log next.
        """
        if self._group is None:
            self._agreed = self._guard.received
        if self._agreed is None:
            return
        if self._checkpoint is not None:
            trainer.save_checkpoint(self._checkpoint, weights_only=False)
        if log is not None:
            log(trainer)
        raise RunInterrupted(signal.Signals(self._agreed))


def _is_validation_next(trainer: Trainer) -> bool:
    """True in the hooks at the end of a batch, if a validation follows them."""
    loop = trainer.fit_loop.epoch_loop
    counters: Any = loop.batch_progress.current
    is_ending = counters.completed == counters.processed - 1
    return is_ending and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]


def _counters(progress: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the counters of a loop, over all epochs and of the current one."""
    return progress["total"], progress["current"]


def _do_nothing() -> None:
    """Stands in for a method that must have no effect."""
