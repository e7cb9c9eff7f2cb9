"""Makes a resumed training go on as if it had never stopped: same random numbers, same data, same metrics.

Lightning restores model, optimizer and counters. It does not restore random number generators, and it starts the data
of an interrupted epoch from the beginning, in another order. Here each checkpoint gets the states of the generators
when it is written, and those with which the data of the current epoch were shuffled. A run that resumes between two
epochs continues with the former. One that resumes within an epoch shuffles with the latter, passes over the batches
that were trained on already, and then continues with the former.

Nor does it restore what the metrics of an epoch are computed from, and gradients that are being accumulated; see
:mod:`health_ml.training.epoch_state`. All of that is kept for each process of a distributed training.
"""

from __future__ import annotations

import copy
import logging
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.trainer.call import _call_callbacks_state_dict
from torch import distributed

from health_ml.training.epoch_state import get_gradients, get_metrics, set_gradients, set_latest_metrics, set_metrics
from health_ml.training.loop_hooks import after, before, log_batch, log_epoch

if TYPE_CHECKING:
    from health_ml.records.record import RunRecord

logger = logging.getLogger(__name__)

CHECKPOINT_KEY = "health_ml_exact_resume"
"""Entry of the checkpoint that holds the states."""

_BATCH_END = "batch end"
_EPOCH_END = "epoch end"
"""Moments of a checkpoint at which the metrics of the batch or the epoch are not logged yet."""

States = dict[str, Any]


def get_random_states() -> States:
    """Returns the states of the generators of Python, NumPy and torch, as tensors and numbers only.

    A checkpoint with these can be read without unpickling anything else. The state of CUDA is that of the current
    device, if CUDA is in use.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    states: States = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached_gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: States) -> None:
    """Restores states that :func:`get_random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached_gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


class ExactResume(Callback):
    """Keeps in the checkpoints what Lightning leaves out, and continues with it. Has to be the first callback.

    :param record: Where metrics go, in the first process: a checkpoint says how many of them it includes.
    """

    def __init__(self, record: RunRecord | None = None) -> None:
        self._record = record
        self._group: Any = None
        self._at_setup: States | None = None
        self._at_epoch_start: States | None = None
        self._before_validation: States | None = None
        self._loaded: States | None = None
        self._progress: States = {}
        self._hooked_trainer: Trainer | None = None
        self._has_started = False

    # --- writing ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the states. A validation that has not ended is repeated, so those from before it count.

        Has to run in every process.
        """
        now = self._before_validation or self._states_now(trainer)
        if "callbacks" in now:
            checkpoint["callbacks"] = now["callbacks"]
        own = {
            "now": now["random"],
            "at_setup": self._at_setup or get_random_states(),
            "at_epoch_start": self._at_epoch_start or get_random_states(),
            "metrics": now["metrics"],
            "gradients": get_gradients(trainer),
        }
        checkpoint[CHECKPOINT_KEY] = {
            "processes": self._gather(trainer, own),
            "moment": _moment_of(trainer),
            "batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "run_id": self._record.run_id if self._record is not None else "",
            "metrics_position": self._record.metrics_position if self._record is not None else 0,
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, a checkpoint includes the validation."""
        self._forget_validation()

    def _forget_validation(self) -> None:
        self._before_validation = None

    def _states_now(self, trainer: Trainer) -> States:
        return {"random": get_random_states(), "metrics": get_metrics(trainer)}

    def _note_validation(self, trainer: Trainer) -> None:
        callbacks = copy.deepcopy(_call_callbacks_state_dict(trainer))
        self._before_validation = {**self._states_now(trainer), "callbacks": callbacks}

    def _gather(self, trainer: Trainer, own: States) -> list[States]:
        """Returns the states of all processes in the first one, and those of this process in the others."""
        if self._group is None:
            return [own]
        states: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        distributed.gather_object(own, states, dst=0, group=self._group)
        return [own] if states is None else states

    # --- reading ------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the states out of a checkpoint; one from elsewhere has none."""
        self._progress = {
            "checkpoint": trainer.ckpt_path, "epoch": checkpoint.get("epoch"), "step": checkpoint.get("global_step")
        }  # fmt: skip
        loaded = checkpoint.get(CHECKPOINT_KEY)
        if loaded is None:
            return
        processes = loaded["processes"]
        if len(processes) == trainer.world_size:
            own = processes[trainer.global_rank]
        else:
            logger.warning(
                f"The checkpoint was written by {len(processes)} processes, and the training continues with "
                f"{trainer.world_size}: metrics of the interrupted epoch cover the rest of it."
            )
            own = {**processes[0], "metrics": None, "gradients": {}}
        self._loaded = {**loaded, **own}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hooks into the loops: Lightning has no callback right before data are shuffled or validation starts."""
        loop = trainer.fit_loop
        if self._hooked_trainer is trainer:
            return
        self._hooked_trainer = trainer
        if trainer.world_size > 1 and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")
        before(loop, "setup_data", lambda: self._before_data(trainer))
        before(loop.epoch_loop, "on_run_start", lambda fetcher: self._before_epoch(trainer, fetcher))
        before(loop.epoch_loop.val_loop, "run", lambda: self._note_validation(trainer))
        after(loop.epoch_loop.val_loop, "run", self._forget_validation)  # no callback is called where there are no data

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues with the states of the checkpoint, before any other code of the epoch runs."""
        if self._loaded is not None:
            set_random_states(self._loaded["now"])

    def _before_data(self, trainer: Trainer) -> None:
        """Keeps the states with which the data of the very first epoch are set up, which is before it starts."""
        if not self._has_started:
            self._has_started = True
            self._start(trainer)
        if trainer.current_epoch > 0:
            return
        if self._loaded is not None:
            self._at_setup = self._loaded["at_setup"]
            set_random_states(self._at_setup)
        elif self._at_setup is None:
            self._at_setup = get_random_states()

    def _start(self, trainer: Trainer) -> None:
        """Brings metrics and their record to where they were when the checkpoint was written."""
        loaded = self._loaded
        position = loaded["metrics_position"] if loaded is not None and self._is_same_run(loaded) else 0
        if self._record is not None:
            self._record.start_training(position, **self._progress)
        if loaded is None or loaded["metrics"] is None:
            return
        set_latest_metrics(trainer, loaded["metrics"])
        if loaded["moment"] == _EPOCH_END:
            self._end_epoch(trainer, loaded)

    def _end_epoch(self, trainer: Trainer, loaded: States) -> None:
        """Does what was left to do in an epoch whose checkpoint was written by a hook at its end."""
        loop = trainer.fit_loop
        set_metrics(trainer, loaded["metrics"])
        if loop.epoch_loop._num_ready_batches_reached():
            loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        log_epoch(trainer, is_logged=self._is_same_run(loaded))
        # With a limit of steps, Lightning would call the hooks at the end of the epoch again.
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]

    def _is_same_run(self, loaded: States) -> bool:
        return self._record is not None and loaded["run_id"] == self._record.run_id

    def _before_epoch(self, trainer: Trainer, fetcher: Any) -> None:
        """Notes with which states an epoch is shuffled; after a resume, brings the epoch to where it was."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            self._at_epoch_start = get_random_states()
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.ready
        has_own_position = any(hasattr(loader, "load_state_dict") for loader in fetcher.combined_loader.flattened)
        if done > 0:
            self._restore_epoch(trainer, loaded)
        elif not has_own_position:
            self._at_epoch_start = get_random_states()
            iter(fetcher)
            return
        self._at_epoch_start = loaded["at_epoch_start"]
        if not has_own_position and not progress.is_last_batch:
            self._pass_over(fetcher, done, is_first_epoch=trainer.current_epoch == 0)
        set_random_states(loaded["now"])

    def _restore_epoch(self, trainer: Trainer, loaded: States) -> None:
        """Restores metrics and gradients of the batches of this epoch that were trained on already."""
        if loaded["metrics"] is None:
            return
        loop = trainer.fit_loop.epoch_loop
        # Else Lightning leaves out the schedulers that watch a metric, because it does not restore metrics.
        trainer.fit_loop._restarting = False
        set_gradients(trainer, loaded["gradients"])
        set_metrics(trainer, loaded["metrics"])
        trainer._logger_connector._first_loop_iter = False  # else the next batch would begin the metrics anew
        if loaded["moment"] != _BATCH_END:
            return
        if self._is_same_run(loaded):
            after, loop._batches_that_stepped = loop._batches_that_stepped, loaded["batches_that_stepped"]
            log_batch(trainer)
            loop._batches_that_stepped = after
        if not loop.val_loop.restarted_mid_evaluation:  # else the loop does it after the validation
            loop.update_lr_schedulers("step", update_plateau_schedulers=True)

    def _pass_over(self, fetcher: Any, done: int, *, is_first_epoch: bool) -> None:
        """Takes the batches that were trained on before the interruption from the loader."""
        assert self._at_epoch_start is not None
        logger.info(f"Passing over the {done} batches of this epoch that were trained on already.")
        set_random_states(self._at_epoch_start)
        if not is_first_epoch:
            iter(fetcher)
        for _ in range(done):
            next(fetcher)
        fetcher.fetched -= done  # Lightning adds them


def _moment_of(trainer: Trainer) -> str:
    """Returns whether a hook at the end of a batch or of an epoch writes the checkpoint, or an empty text."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if epoch.processed == epoch.completed + 1:
        return _EPOCH_END
    return _BATCH_END if batch.processed == batch.completed + 1 else ""
