"""Keeps what a process prints in a file of its own: in a job, the console of each process and attempt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from health_ml.environment import RunEnvironment
from health_ml.settings import CONSOLE_LOGS_FOLDER, OUTPUTS_FOLDER

TIME_FORMAT = "%Y-%m-%dT%H%M%S"
"""A restarted job begins another file, because it starts at another time."""


class Tee:
    """A text stream that also writes to a file.

    :param stream: The stream to stand in for.
    :param log: The file. What cannot be written to it is lost: a full disk must not end a training here.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream = stream
        self._log = log

    def write(self, text: str) -> int:
        """Writes to both, and returns the number of characters."""
        with suppress(OSError, ValueError):
            self._log.write(text)
        return self._stream.write(text)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        with suppress(OSError, ValueError):
            self._log.flush()
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def console_log(folder: Path, environment: RunEnvironment) -> Iterator[None]:
    """Writes what this process prints to a file below a folder as well.

    :param folder: Folder of the job.
    :param environment: Which process of the run this is.
    """
    stem = f"logging_{time.strftime(TIME_FORMAT, time.gmtime())}"
    name = f"{stem}_node{environment.node_rank}_rank{environment.local_rank}.txt"
    path = folder / OUTPUTS_FOLDER / CONSOLE_LOGS_FOLDER / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError:  # the run itself says that it cannot write there
        yield
        return
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tee(sys.stdout, log), Tee(sys.stderr, log)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        with suppress(OSError):
            log.close()
