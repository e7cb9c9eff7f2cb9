"""Writes checkpoint files that are complete at any moment, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from health_ml.errors import OutputError
from health_ml.training.plain_values import with_plain_hyperparameters

_NOT_A_FILE_SYSTEM_FOR_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in the same folder, and renames it when it is safely on the disk.

    A reader sees the previous file or the new one, never half of one, also after a kill or a power cut.
    Hyperparameters are stored as plain values, so that the safe loader reads every checkpoint back.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes the checkpoint to a local file, or hands it to Lightning if the path is a URL.

        :raises OutputError: If the file cannot be written; what was there before stays.
        """
        checkpoint = with_plain_hyperparameters(checkpoint)
        if "://" in os.fspath(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint to a local file, all or nothing.

    :raises OutputError: If the file cannot be written; what was there before stays.
    """
    _write(path, lambda file: torch.save(checkpoint, file))


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copies a checkpoint in the local file system, all or nothing.

    :raises OutputError: If it cannot be written; what was there before stays.
    """

    def copy(file: BinaryIO) -> None:
        with source.open("rb") as original:
            shutil.copyfileobj(original, file, 1 << 20)

    _write(path, copy)


def _write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        _remove_quietly(temporary)
        cause = _cause_on_disk(error)
        if cause is None:
            raise
        raise OutputError(
            f"Cannot write the checkpoint {path}: {cause}. {_what_is_left(path)}",
            "Free some space, check the permissions, or choose another folder with --output_to.",
        ) from error


def _remove_leftovers(path: Path) -> None:
    """Removes what a process that was killed while it wrote the same checkpoint has left."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


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
