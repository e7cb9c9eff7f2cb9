"""Tells whether the process of a trial lives, whoever started it: it holds the lock on a file until it ends.

The scheduler takes the lock and hands it to the process that it starts. So there is no moment at which a trial runs
and is not locked, and none at which two processes can run the same trial.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from health_ml.records.process_identity import is_dead
from health_ml.records.reader import read_document

_OPEN = os.O_RDWR | os.O_CREAT
_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.05


def take_lock(path: Path) -> int | None:
    """Returns a file descriptor that holds the lock on a file, or None if another process keeps it for seconds.

    Somebody who only looks has the lock for a moment, and what a process has started may end a little later than it.
    Whoever has the descriptor, or a copy of it, holds the lock; the system releases it with the last one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, _OPEN, 0o664)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not _lock(descriptor):
        if time.monotonic() > deadline:
            os.close(descriptor)
            return None
        time.sleep(_POLL_SECONDS)
    os.ftruncate(descriptor, 0)
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_owner(descriptor: int, identity: Mapping[str, Any]) -> None:
    """Writes into a locked file which process holds the lock."""
    os.pwrite(descriptor, json.dumps(dict(identity)).encode() + b"\n", 0)


def read_owner(path: Path) -> dict[str, Any]:
    """Returns the identity of the process that holds the lock, empty if it has not said so yet."""
    return read_document(path)


def is_held(path: Path) -> bool:
    """Returns True if the process that holds the lock lives.

    A process that loads data may have a copy of the lock for some seconds after its parent has died.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = read_owner(path)
        return not owner or not is_dead(owner)
    finally:
        os.close(descriptor)
    return False
