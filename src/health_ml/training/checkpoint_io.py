"""Writes checkpoint files that are complete at any moment, and reads those that the safe loader takes."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from health_ml.checkpoints.signature import sign
from health_ml.errors import OutputError
from health_ml.records.record import moved_error
from health_ml.settings import RECORD_CHECKPOINTS_FILE
from health_ml.training.plain_values import harmless_classes, with_plain_hyperparameters

if TYPE_CHECKING:
    from health_ml.records.record import RunRecord

_NOT_A_FILE_SYSTEM_FOR_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
_TEMPORARY_PREFIX = ".checkpoint-"
_TEMPORARY_SUFFIX = ".tmp"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in the same folder, and renames it when it is safely on the disk.

    A reader sees the previous file or the new one, never half of one, also after a kill or a power cut.
    Hyperparameters are stored as plain values, so that the safe loader reads every checkpoint back.

    :param record: Where each checkpoint is noted with its signature, by which it is known as one of this user's.
    """

    def __init__(self, record: RunRecord | None = None) -> None:
        super().__init__()
        self._record = record

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint to a local file, or hands it to Lightning if the path is a URL.

        :raises OutputError: If the file cannot be written; what was there before stays.
        """
        checkpoint = with_plain_hyperparameters(checkpoint)
        if "://" in os.fspath(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, Path(path), record=self._record)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Returns the content of a checkpoint; the safe loader takes paths and enums too."""
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except pickle.UnpicklingError as error:
            with torch.serialization.safe_globals(harmless_classes(Path(path), error)):
                return super().load_checkpoint(path, map_location, weights_only)


def write_checkpoint(checkpoint: dict[str, Any], path: Path, *, record: RunRecord | None = None) -> None:
    """Writes a checkpoint to a local file, all or nothing, and notes it in the record.

    :raises OutputError: If the file cannot be written; what was there before stays.
    """

    def note(file: Path) -> None:
        if record is not None:
            _note(checkpoint, path, file, record)

    if record is not None and not record.folder.is_dir():  # never the beginning of another run folder
        raise moved_error(record.folder)
    _write(path, lambda file: torch.save(checkpoint, file), note)


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copies a checkpoint in the local file system, all or nothing. The signature of the one holds for the other.

    :raises OutputError: If it cannot be written; what was there before stays.
    """

    def copy(file: BinaryIO) -> None:
        with source.open("rb") as original:
            shutil.copyfileobj(original, file, 1 << 20)

    _write(path, copy, lambda _: None)


def _write(path: Path, write: Callable[[BinaryIO], None], note: Callable[[Path], None]) -> None:
    # A short name of its own, because the name of the checkpoint may be as long as the file system allows.
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{os.getpid()}{_TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        with temporary.open("wb") as file:
            _lock(file.fileno())
            write(file)
            file.flush()
            os.fsync(file.fileno())
            note(temporary)
            temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        _remove_quietly(temporary)
        cause = _cause_on_disk(error)
        if cause is None:
            raise
        raise OutputError(
            f"Cannot write the checkpoint {path}: {cause}. {_what_is_left(path)}",
            "Free some space, check the permissions, or choose another folder.",
        ) from error


def _note(checkpoint: dict[str, Any], path: Path, file: Path, record: RunRecord) -> None:
    """Adds a line with the signature to the record, before the file gets its name: no checkpoint is without one."""
    row = {
        "time": time.time(),
        "attempt": record.attempt,
        "name": path.name,
        "epoch": checkpoint.get("epoch"),
        "global_step": checkpoint.get("global_step"),
        "bytes": file.stat().st_size,
        "signature": sign(file),
    }
    record.append_row(RECORD_CHECKPOINTS_FILE, row)


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed while they wrote a checkpoint have left."""
    for leftover in folder.glob(f"{_TEMPORARY_PREFIX}*{_TEMPORARY_SUFFIX}"):
        try:
            with leftover.open("rb") as file:
                is_left = _lock(file.fileno())
                if is_left:
                    leftover.unlink(missing_ok=True)
        except OSError:  # gone by now, or of somebody else
            continue


def _lock(descriptor: int) -> bool:
    """Locks a file as long as it is open; returns False if another process holds it, or nobody can say."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # an unwritable folder; the error that led here says more
        return


def _sync_folder(folder: Path) -> None:
    """Makes the new name in a folder survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_A_FILE_SYSTEM_FOR_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _cause_on_disk(error: BaseException) -> str | None:
    """Returns why the disk refused, or None if something else went wrong.

    torch turns an error of the file into a RuntimeError of its own when it closes the archive.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError):
            return current.strerror or str(current)
        current = current.__cause__ or current.__context__
    if isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error):
        return "the file system did not take all of it"
    return None


def _what_is_left(path: Path) -> str:
    return "The previous file is unchanged." if path.exists() else "Nothing was written."
