"""Which checkpoint a run continues from after it was interrupted."""

from __future__ import annotations

import logging
from pathlib import Path

from health_ml.checkpoints.files import list_recoverable_files
from health_ml.checkpoints.inspect import CheckpointProgress, DamagedCheckpointError, read_progress, verify
from health_ml.errors import CheckpointError
from health_ml.settings import CHECKPOINT_FOLDER, FORMER_ATTEMPTS_FOLDER, LAST_CHECKPOINT

_log = logging.getLogger(__name__)


def find_recovery_checkpoint(folder: Path) -> Path | None:
    """Returns the complete checkpoint with the highest epoch and step in a folder, or None if there is none.

    Looks at ``last*.ckpt`` and ``autosave*.ckpt``. Files that are damaged are reported as warnings and skipped.

    :param folder: Folder of the checkpoints. It need not exist.
    :raises CheckpointError: If one of the files exists but cannot be read for another reason than damage: starting
        from zero next to a checkpoint that may be good is never right.
    """
    damaged: list[Path] = []
    readable: list[tuple[CheckpointProgress, Path]] = []
    for path in list_recoverable_files(folder):
        progress = _progress_of(path, damaged)
        if progress is not None:
            readable.append((progress, path))
    readable.sort(key=_rank, reverse=True)
    for progress, path in readable:
        if _is_undamaged(path, damaged):
            _log.info("Continuing from %s (epoch %d, step %d).", path, progress.epoch, progress.global_step)
            return path
    if damaged:
        names = ", ".join(path.name for path in damaged)
        _log.warning("No checkpoint in %s can be used: %s. The training starts from the beginning.", folder, names)
    return None


def recovery_folder(outputs: Path, *, node_rank: int) -> Path:
    """Returns the folder in which a restarted run looks for the checkpoint to continue from.

    On the first machine that is the folder that the run writes its checkpoints to. The other machines write none, and
    what they put into their outputs would be collected in place of the first one's: they have a folder outside.

    :param outputs: The outputs folder of the run.
    :param node_rank: Number of this machine.
    """
    parent = outputs if node_rank == 0 else outputs.parent / FORMER_ATTEMPTS_FOLDER
    return parent / CHECKPOINT_FOLDER


def get_recovery_checkpoint_path(path: Path) -> Path:
    """Returns the checkpoint that :func:`find_recovery_checkpoint` finds in a folder.

    :raises CheckpointError: If there is none.
    """
    found = find_recovery_checkpoint(path)
    if found is None:
        present = ", ".join(sorted(file.name for file in path.iterdir())) if path.is_dir() else ""
        raise CheckpointError(
            f"There is no checkpoint to continue from in {path}.", f"It holds {present or 'nothing'}."
        )
    return found


def _rank(candidate: tuple[CheckpointProgress, Path]) -> tuple[int, int, bool, float]:
    """Returns what to sort by: progress first; of two that are equally far, last.ckpt, then the newer one."""
    progress, path = candidate
    return progress.epoch, progress.global_step, path.name == LAST_CHECKPOINT, path.stat().st_mtime


def _progress_of(path: Path, damaged: list[Path]) -> CheckpointProgress | None:
    try:
        return read_progress(path)
    except DamagedCheckpointError as error:
        _report(path, error, damaged)
        return None
    except CheckpointError as error:
        raise CheckpointError(
            f"Cannot continue the training: {error.message}",
            f"Nothing was started, because {path.name} may hold the progress of this run. Make it readable, or move "
            "it out of the folder.",
        ) from error


def _is_undamaged(path: Path, damaged: list[Path]) -> bool:
    try:
        verify(path)
    except DamagedCheckpointError as error:
        _report(path, error, damaged)
        return False
    return True


def _report(path: Path, error: DamagedCheckpointError, damaged: list[Path]) -> None:
    damaged.append(path)
    _log.warning("%s It is skipped.", error.message)
