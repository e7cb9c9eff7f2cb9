"""Decides how a checkpoint may be read, before anything depends on it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from health_ml.checkpoints.inspect import describe_refusal, read_progress, verify
from health_ml.checkpoints.signature import is_own
from health_ml.errors import CheckpointError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from health_ml.lightning_container import LightningContainer


_SAFETENSORS_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class LoadableCheckpoint:
    """A checkpoint that torch can load.

    :param path: The file.
    :param is_weights_only: True if torch's safe loader reads it. The full loader executes code that the file names.
    :param finished_epochs: Number of epochs that were complete when it was written.
    :param steps: Number of optimizer steps until then.
    :param epoch: Index of the epoch in which it was written.
    :param last_step: Number under which the metrics of its last batch were logged.
    """

    path: Path
    is_weights_only: bool
    finished_epochs: int
    steps: int
    epoch: int
    last_step: int

    def place(self, trainer: Trainer) -> None:
        """Makes a Trainer log under the epoch and step of the checkpoint; otherwise evaluation logs under zero."""
        trainer.fit_loop.epoch_progress.current.completed = self.epoch
        trainer.fit_loop.epoch_loop._batches_that_stepped = self.last_step


def examine_checkpoint(path: Path, *, is_trusted: bool) -> LoadableCheckpoint:
    """Returns how a checkpoint can be loaded. All of it is read once, to compare it with its checksums.

    :param is_trusted: True if its code may run, see :func:`is_trusted`: only then may it need the full loader.
    :raises CheckpointError: If the file is missing, damaged, not a Lightning checkpoint, or needs the full loader
        without being trusted.
    """
    progress = read_progress(path)
    verify_once(path)
    try:
        content, is_weights_only = _load(path, is_weights_only=True), True
    except pickle.UnpicklingError as error:
        if not is_trusted:
            raise CheckpointError(describe_refusal(path, error)) from error
        content, is_weights_only = _load(path, is_weights_only=False), False
    if not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} is not a checkpoint of a Lightning model: it has no 'state_dict'.",
            "Use a .ckpt file that a Trainer wrote.",
        )
    return LoadableCheckpoint(
        path,
        is_weights_only,
        finished_epochs=_finished_epochs(content, progress.epoch),
        steps=progress.global_step,
        epoch=progress.epoch,
        last_step=_last_step(content, progress.global_step),
    )


def verify_once(path: Path) -> None:
    """Checks that a checkpoint is complete and unchanged, unless that was done in this process already.

    torch itself ignores the checksums: it would load damaged weights without a word.

    :raises CheckpointError: If it is not.
    """
    state = path.stat()
    _verify_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _verify_state(path: Path, *_: int) -> None:
    verify(path)


def check_weights(path: Path) -> None:
    """Checks a file that the container loads itself: that torch wrote it, and that it is complete.

    :raises CheckpointError: If not.
    """
    if path.suffix != _SAFETENSORS_SUFFIX:  # which holds weights too, and which only the container knows to read
        verify_once(path)


def check_epochs_left(start: LoadableCheckpoint, container: LightningContainer) -> None:
    """Raises if a training that continues from the checkpoint would have nothing to do, as far as the flags tell.

    A container with Trainer arguments of its own may say something else there: :func:`check_training_left` decides.

    :raises CheckpointError: If so.
    """
    if not _overrides_trainer_arguments(container):
        _check_epochs(start, container.max_epochs)


def check_training_left(start: LoadableCheckpoint, trainer: Trainer) -> None:
    """Raises if the Trainer would have nothing to do, continuing from the checkpoint.

    :raises CheckpointError: If so.
    """
    _check_epochs(start, trainer.max_epochs)
    if 0 <= trainer.max_steps <= start.steps:
        raise CheckpointError(
            f"The checkpoint {start.path} has {start.steps} steps, so with max_steps={trainer.max_steps} nothing is "
            "left to train.",
            "Give a larger --trainer.max_steps, or use --run_inference_only to test the checkpoint.",
        )


def _check_epochs(start: LoadableCheckpoint, max_epochs: int | None) -> None:
    if max_epochs is not None and 0 <= max_epochs <= start.finished_epochs:
        raise CheckpointError(
            f"The checkpoint {start.path} has {start.finished_epochs} finished epochs, so with "
            f"--max_epochs={max_epochs} nothing is left to train.",
            "Give a larger --max_epochs, or use --run_inference_only to test the checkpoint.",
        )


def _overrides_trainer_arguments(container: LightningContainer) -> bool:
    from health_ml.lightning_container import LightningContainer as Base  # imports Lightning

    return type(container).get_trainer_arguments is not Base.get_trainer_arguments


def is_trusted(checkpoint: Path, container: LightningContainer) -> bool:
    """Returns True for a checkpoint that a run of this user wrote, and for any if the user says so."""
    return bool(container.trust_checkpoint) or is_own(checkpoint)


@contextmanager
def explained_loading(path: Path | None) -> Iterator[None]:
    """Turns torch's complaint about a checkpoint that does not fit the model into one for the user.

    :raises CheckpointError: If the body raises that complaint.
    """
    try:
        yield
    except (RuntimeError, KeyError) as error:
        if path is None or "loading state_dict" not in str(error):
            raise
        raise CheckpointError(
            f"The checkpoint {path} does not fit the model: {' '.join(str(error).split())}",
            "Use the checkpoint of a run of the same model with the same parameters.",
        ) from error


def _load(path: Path, *, is_weights_only: bool) -> Any:
    import torch  # loading is the first thing that needs it

    from health_ml.training.plain_values import harmless_classes  # imports torch

    def load() -> Any:
        # Only the zip format can be mapped, and only below a name that is text; all else has to be read.
        is_mapped = zipfile.is_zipfile(path) and str(path).isprintable()
        # Not safe only for what is_trusted vouches for.
        return torch.load(path, map_location="cpu", weights_only=is_weights_only, mmap=is_mapped)  # nosec B614

    try:
        try:
            return load()
        except pickle.UnpicklingError as error:
            with torch.serialization.safe_globals(harmless_classes(path, error)):
                return load()
    except Exception as error:  # unpickling can run code of the user's own classes, which can raise anything
        if is_weights_only and isinstance(error, pickle.UnpicklingError):
            raise
        raise CheckpointError(
            f"The checkpoint {path} cannot be loaded: {type(error).__name__}: {error}",
            "Was it written by a newer version of torch, or by a model whose code has changed?",
        ) from error


def _finished_epochs(content: dict[str, Any], epoch: int) -> int:
    """Returns how many epochs were complete; in a checkpoint of the end of an epoch, one more than its index."""
    try:
        return int(content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError):  # written without the state of the loops
        return epoch


def _last_step(content: dict[str, Any], steps: int) -> int:
    """Returns the number of batches with an optimizer step, counted from 0, or that of optimizer steps."""
    try:
        count = int(content["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])
    except (KeyError, TypeError):  # written without the state of the loops
        count = steps
    return max(count - 1, 0)
