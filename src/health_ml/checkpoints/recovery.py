"""Which checkpoint a run continues from after it was interrupted."""

from __future__ import annotations

import logging
from pathlib import Path

from health_ml.checkpoints.files import is_of_the_runner, list_checkpoint_files
from health_ml.checkpoints.inspect import (
    CheckpointProgress,
    DamagedCheckpointError,
    check_resumable,
    read_progress,
    verify,
)
from health_ml.errors import CheckpointError
from health_ml.settings import CHECKPOINT_FOLDER, FORMER_ATTEMPTS_FOLDER, LAST_CHECKPOINT

_log = logging.getLogger(__name__)


def find_recovery_checkpoint(folder: Path) -> Path | None:
    """Returns the complete checkpoint with the highest epoch and step in a folder, or None if it has no checkpoints.

    Looks at every ``*.ckpt``, those of the user's own callbacks too. Files that are damaged are reported as warnings
    and skipped, and so are files of the user's that hold no state to continue from.

    :param folder: Folder of the checkpoints. It need not exist.
    :raises CheckpointError: If there are checkpoints and none can be used, or if one of the runner's own exists but
        cannot be read for another reason than damage: starting from zero next to a checkpoint that may be good is
        never right.
    """
    files = list_checkpoint_files(folder)
    readable = [(progress, path) for path in files if (progress := _progress_of(path)) is not None]
    for progress, path in sorted(readable, key=_rank, reverse=True):
        if _can_be_continued(path):
            _log.info("Continuing from %s (epoch %d, step %d).", path, progress.epoch, progress.global_step)
            return path
    if files:
        names = ", ".join(path.name for path in files)
        raise CheckpointError(
            f"Cannot continue the training: no checkpoint in {folder} can be used: {names}. The log says why.",
            "Nothing was started. Put a good copy of one of them there, or move all of them out of the folder to "
            "start from the beginning.",
        )
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


def _progress_of(path: Path) -> CheckpointProgress | None:
    try:
        return read_progress(path)
    except DamagedCheckpointError as error:
        _report(error)
    except CheckpointError as error:
        if is_of_the_runner(path):
            raise CheckpointError(
                f"Cannot continue the training: {error.message}",
                f"Nothing was started, because {path.name} may hold the progress of this run. Make it readable, or "
                "move it out of the folder.",
            ) from error
        _report(error)
    return None


def _can_be_continued(path: Path) -> bool:
    try:
        verify(path)
        if not is_of_the_runner(path):  # which is always complete
            check_resumable(path)
    except CheckpointError as error:
        _report(error)
        return False
    return True


def _report(error: CheckpointError) -> None:
    _log.warning("%s It is skipped.", error.message)
