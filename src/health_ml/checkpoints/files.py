"""The checkpoint files of a run: their names, and what is kept when training ends."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from health_ml.errors import CheckpointError
from health_ml.settings import AUTOSAVE_CHECKPOINT_STEM, CHECKPOINT_SUFFIX, LAST_CHECKPOINT, LAST_CHECKPOINT_STEM

_OWN = re.compile(
    rf"({re.escape(LAST_CHECKPOINT_STEM)}|{re.escape(AUTOSAVE_CHECKPOINT_STEM)})(-[^.]*(\.\d+[^.]*)*)?"
    rf"{re.escape(CHECKPOINT_SUFFIX)}"
)
"""``last.ckpt``, ``autosave-v1.ckpt``, ``last-loss=0.25.ckpt``."""

_log = logging.getLogger(__name__)


def get_best_checkpoint_path(path: Path) -> Path:
    """Returns the path of the checkpoint that is tested by default, ``last.ckpt`` in the given folder.

    :param path: Folder of the checkpoints. The file need not exist.
    """
    return path / LAST_CHECKPOINT


def list_checkpoint_files(checkpoint_folder: Path) -> list[Path]:
    """Returns the checkpoint files in a folder, those of the user's own callbacks too, in ascending order.

    Hidden files are left out: a checkpoint that is still being written has such a name.
    """
    if not checkpoint_folder.is_dir():
        return []
    files = checkpoint_folder.glob(f"*{CHECKPOINT_SUFFIX}")
    return sorted(path for path in files if not path.name.startswith("."))


def is_of_the_runner(path: Path) -> bool:
    """True for the checkpoints that every run writes, ``last*.ckpt`` and ``autosave*.ckpt``."""
    return _OWN.fullmatch(path.name) is not None


def cleanup_checkpoints(checkpoint_folder: Path) -> None:
    """Removes the autosave checkpoints, which nobody needs once training is complete.

    Does nothing in a folder without any files, as a trial run leaves it.

    :raises CheckpointError: If there are files, but no ``last.ckpt``; then nothing is removed.
    """
    present = sorted(path.name for path in checkpoint_folder.iterdir()) if checkpoint_folder.is_dir() else []
    if not present:
        return
    if not (checkpoint_folder / LAST_CHECKPOINT).is_file():
        raise CheckpointError(
            f"There is no {LAST_CHECKPOINT} in {checkpoint_folder}; the folder holds {', '.join(present)}.",
            "Nothing was removed. A callback of the container may have deleted or renamed it.",
        )
    for path in list_checkpoint_files(checkpoint_folder):
        if is_of_the_runner(path) and path.name.startswith(AUTOSAVE_CHECKPOINT_STEM):
            path.unlink(missing_ok=True)
            _log.debug("Removed %s.", path)
