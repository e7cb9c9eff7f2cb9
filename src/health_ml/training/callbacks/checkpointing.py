"""Keeps the checkpoints that a run can be continued from, and keeps those of the user apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn

from health_ml.settings import AUTOSAVE_CHECKPOINT, AUTOSAVE_CHECKPOINT_STEM, LAST_CHECKPOINT


class EpochCheckpoint(Checkpoint):
    """Writes one file at the end of training epochs, after validation and after the hooks of the model.

    Unlike ModelCheckpoint it needs no metric, keeps no state and runs without validation data too. Lightning calls
    it after every other callback, so the state of those is in the file.

    :param path: The file to write.
    :param every_n_epochs: Write it every so many epochs.
    """

    def __init__(self, path: Path, *, every_n_epochs: int = 1) -> None:
        super().__init__()
        self.path = path
        self.every_n_epochs = every_n_epochs

    @property
    def last_model_path(self) -> str:
        """The file, under the name that ModelCheckpoint has for it."""
        return str(self.path)

    @property
    def best_model_path(self) -> str:
        """An empty text: this callback does not compare models."""
        return ""

    def is_due(self, trainer: Trainer) -> bool:
        """True if the epoch that ends now is one to write a checkpoint for."""
        if getattr(trainer, "fast_dev_run", False) or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file if it is due. Has to run in every process."""
        if self.is_due(trainer):
            trainer.save_checkpoint(self.path, weights_only=False)


class LastCheckpoint(EpochCheckpoint):
    """Keeps ``last.ckpt``: the state at the end of the last epoch, complete at any moment."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LAST_CHECKPOINT)


class AutosaveCheckpoint(EpochCheckpoint):
    """Keeps ``autosave.ckpt`` while the model trains, and removes it at the end of a successful training.

    :param folder: Folder of the checkpoints.
    :param every_n_val_epochs: Write it every so many epochs with validation.
    """

    def __init__(self, folder: Path, *, every_n_val_epochs: int) -> None:
        super().__init__(folder / AUTOSAVE_CHECKPOINT, every_n_epochs=every_n_val_epochs)

    def is_due(self, trainer: Trainer) -> bool:
        """True if the epoch that ends now is one to write a checkpoint for."""
        is_epoch = super().is_due(trainer)
        interval = self.every_n_epochs * (trainer.check_val_every_n_epoch or 1)
        return is_epoch and (trainer.current_epoch + 1) % interval == 0

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Removes the file, also if there was nothing left to train: ``last.ckpt`` holds the same or more."""
        last = self.path.with_name(LAST_CHECKPOINT)
        if trainer.is_global_zero and last.exists():
            for path in self.path.parent.glob(f"{AUTOSAVE_CHECKPOINT_STEM}*{self.path.suffix}"):
                path.unlink(missing_ok=True)


def prepare_model_checkpoints(callbacks: Iterable[Callback], folder: Path) -> None:
    """Makes several ModelCheckpoints of a user work together.

    Those without a folder write to the run's checkpoint folder. Lightning stores the state of each under a key made
    of its settings and refuses two with the same key, for example two that monitor the same metric: every further
    one gets a key of its own.
    """
    seen: dict[str, int] = {}
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(folder)
        key = callback.state_key
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 1:
            _give_own_state_key(callback, f"{key}#{seen[key]}")


def _give_own_state_key(callback: ModelCheckpoint, key: str) -> None:
    """Replaces the state key, a property of the class, by one for this object."""
    original = type(callback)
    members: dict[str, Any] = {"state_key": property(lambda self: key), "__module__": original.__module__}
    callback.__class__ = type(original.__name__, (original,), members)
