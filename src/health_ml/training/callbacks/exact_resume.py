"""Makes a resumed training go on as if it had never stopped: with the same random numbers and the same data.

Lightning restores model, optimizer and counters. It does not restore random number generators, and it starts the data
of an interrupted epoch from the beginning, in another order. Here each checkpoint gets the states of the generators
when it is written, and those with which the data of the current epoch were shuffled. A run that resumes between two
epochs continues with the former. One that resumes within an epoch shuffles with the latter, passes over the batches
that were trained on already, and then continues with the former.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

logger = logging.getLogger(__name__)

CHECKPOINT_KEY = "health_ml_random_states"
"""Entry of the checkpoint that holds the states."""

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
    """Keeps random states in the checkpoints, and continues with them. Has to be the first callback."""

    def __init__(self) -> None:
        self._at_setup: States | None = None
        self._at_epoch_start: States | None = None
        self._before_validation: States | None = None
        self._loaded: States | None = None
        self._hooked_trainer: Trainer | None = None

    # --- writing ------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the states. A validation that has not ended is repeated, so those from before it count."""
        checkpoint[CHECKPOINT_KEY] = {
            "now": self._before_validation or get_random_states(),
            "at_setup": self._at_setup or get_random_states(),
            "at_epoch_start": self._at_epoch_start or get_random_states(),
        }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on, a checkpoint includes the validation."""
        self._before_validation = None

    # --- reading ------------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the states out of a checkpoint; one from elsewhere has none."""
        self._loaded = checkpoint.get(CHECKPOINT_KEY)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hooks into the loops: Lightning has no callback right before data are shuffled or validation starts."""
        loop = trainer.fit_loop
        if self._hooked_trainer is trainer:
            return
        self._hooked_trainer = trainer
        _before(loop, "setup_data", lambda: self._before_data(trainer))
        _before(loop.epoch_loop, "on_run_start", lambda fetcher: self._before_epoch(trainer, fetcher))
        _before(loop.epoch_loop.val_loop, "run", self._note_validation)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues with the states of the checkpoint, before any other code of the epoch runs."""
        if self._loaded is not None:
            set_random_states(self._loaded["now"])

    def _before_data(self, trainer: Trainer) -> None:
        """Keeps the states with which the data of the very first epoch are set up, which is before it starts."""
        if trainer.current_epoch > 0:
            return
        if self._loaded is not None:
            self._at_setup = self._loaded["at_setup"]
            set_random_states(self._at_setup)
        elif self._at_setup is None:
            self._at_setup = get_random_states()

    def _before_epoch(self, trainer: Trainer, fetcher: Any) -> None:
        """Notes with which states an epoch is shuffled; after a resume, brings the data to where they were."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            self._at_epoch_start = get_random_states()
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        done = progress.current.ready
        has_own_position = any(hasattr(loader, "load_state_dict") for loader in fetcher.combined_loader.flattened)
        if done == 0 and not has_own_position:
            self._at_epoch_start = get_random_states()
            iter(fetcher)
            return
        self._at_epoch_start = loaded["at_epoch_start"]
        if not has_own_position and not progress.is_last_batch:
            self._pass_over(fetcher, done, is_first_epoch=trainer.current_epoch == 0)
        set_random_states(loaded["now"])

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

    def _note_validation(self) -> None:
        self._before_validation = get_random_states()


def _before(owner: Any, method: str, action: Callable[..., None]) -> None:
    """Lets an action run before a method of one object, with the same arguments."""
    original = getattr(owner, method)

    def run_both(*arguments: Any) -> Any:
        action(*arguments)
        return original(*arguments)

    setattr(owner, method, run_both)
