"""Makes a process the only one that writes to a run folder: its first process locks a file in the record."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from health_ml.backends.trial_lock import read_owner, write_owner
from health_ml.errors import EXIT_USAGE, OutputError
from health_ml.records.process_identity import is_dead, process_identity
from health_ml.settings import RECORD_RUN_LOCK_FILE

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 2.0
"""How long a process that has been told to end may take to do so."""
_POLL_SECONDS = 0.05
_held: set[int] = set()


@contextmanager
def run_lock(record_folder: Path) -> Iterator[None]:
    """Holds the lock of a run in the body. The system releases it with the process, however that ends.

    Where the file system knows no locks, runs are not protected from each other.

    :raises OutputError: If another process writes to the run.
    """
    path = record_folder / RECORD_RUN_LOCK_FILE
    record_folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        if _take(descriptor, path):
            os.ftruncate(descriptor, 0)
            write_owner(descriptor, process_identity())
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _take(descriptor: int, path: Path) -> bool:
    """Returns True once this process has the lock, False if there are no locks here."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _refusal(path, read_owner(path)) from None
        except OSError as error:
            logger.debug("The file system of %s has no locks: %s", path, error)
            return False
        else:
            return True
        time.sleep(_POLL_SECONDS)


def _refusal(path: Path, owner: dict[str, Any]) -> OutputError:
    who = f"Process {owner['pid']} on {owner.get('host')}" if "pid" in owner else "Another process"
    state = " has ended, but something that it started still" if owner and is_dead(owner) else ""
    return OutputError(
        f"{who}{state} writes to the run folder {path.parent.parent}. Two processes would damage each other's results.",
        "Wait until it has ended, or end it, and try again; or choose another folder. After the crash of a machine, a "
        f"network file system may keep its lock: once no process of the run is left on any machine, remove {path}.",
        EXIT_USAGE,
    )


def _release_in_child() -> None:
    """Leaves the lock to this process alone: one that loads data must not hold it when this one has died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
