"""What the training knows of its mirror: shows what it has to say, and waits for it at the end."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, MirrorState, lack_message
from health_ml.records.reader import read_status
from health_ml.records.record import RunStatus
from health_ml.settings import RECORD_MIRROR_LOG_FILE

logger = logging.getLogger(__name__)

SILENT_SECONDS = 5.0
"""How long the end of a run waits for a server that has not answered so far."""

_STOP_SECONDS = 3.0
_STOP_SECONDS_OF_SILENT = 0.5
_LIVES = 2
"""How many processes may try to carry the end of a run over, if something kills them."""
_QUIET_SECONDS = 5.0
"""How long the end of a run waits without saying what for."""
_STOPPED = (RunStatus.PREEMPTED, RunStatus.CANCELLED)
_SECONDS_OF_STOPPED = 9.0
"""A run that was told to stop has little time, ten seconds for all that it does: the mirror can be caught up later."""


class MirrorHandle:
    """A mirror that was started.

    :param process: Its process, or None if it could not be started.
    :param restart: Starts another process for the same record.
    """

    def __init__(
        self,
        record_folder: Path,
        settings: MirrorSettings,
        process: subprocess.Popen[bytes] | None,
        *,
        restart: Callable[[], subprocess.Popen[bytes] | None],
    ) -> None:
        self._folder = record_folder
        self._settings = settings
        self._process = process
        self._restart = restart
        self._listener = _listen(process)

    @property
    def process_id(self) -> int | None:
        """Id of the mirror's process."""
        return self._process.pid if self._process else None

    def finish(self, timeout_seconds: float, *, silent_seconds: float = SILENT_SECONDS) -> MirrorState:
        """Returns what was achieved, after waiting for the mirror to catch up, at most about this long.

        Write the final status to the record first: the mirror ends when it has carried that over. A mirror that has
        not caught up in time is stopped, and the state says so. One that something has killed is started again.

        :param silent_seconds: How long to wait if MLflow has not answered while the run went on.
        """
        begin = time.monotonic()
        end = begin + timeout_seconds
        for rest in reversed(range(_LIVES)):
            if self._process is None or self._end(self._process, end - time.monotonic(), silent_seconds):
                break
            if not (rest and self._folder.is_dir()):
                break
            logger.info("The mirror did not live to see the end of the run: another one takes over.")
            self._process = self._restart()
            self._listener = _listen(self._process)
        self._process = None
        progress = MirrorProgress.load(self._folder)
        if not self._folder.is_dir():
            progress.message = (
                f"MLflow lacks how the run ended, because {self._folder} is gone. Catch up with: himl-runner "
                f"--sync={self._folder.parent.name} --output_to=<where the folder is now>"
            )
        elif not progress.message:
            progress.settings = self._settings.masked()
            progress.is_complete = False
            progress.trouble = progress.trouble or (
                f"{time.monotonic() - begin:.0f} seconds were not enough (see {self._folder / RECORD_MIRROR_LOG_FILE})"
            )
            progress.message = lack_message(self._folder, progress)
        return progress.as_state()

    def _end(self, process: subprocess.Popen[bytes], timeout_seconds: float, silent_seconds: float) -> bool:
        """Waits for the end of the mirror, or ends it; returns False if something else has killed it."""
        _raise_priority(process.pid)
        wake_up(process)
        is_stopped = not self._wait(process, timeout_seconds, silent_seconds)
        close_pipes(process, self._listener)
        return is_stopped or process.returncode == 0

    def _wait(self, process: subprocess.Popen[bytes], timeout_seconds: float, silent_seconds: float) -> bool:
        """Returns True if the mirror has ended by itself."""
        stop_seconds = _STOP_SECONDS
        if read_status(self._folder).status in _STOPPED:
            timeout_seconds, stop_seconds = min(timeout_seconds, _SECONDS_OF_STOPPED), _STOP_SECONDS_OF_SILENT
        rest_seconds = max(0.0, timeout_seconds - stop_seconds)
        progress = MirrorProgress.load(self._folder)
        if progress.trouble and not progress.has_answered:
            return wait_or_stop(process, min(timeout_seconds, silent_seconds), stop_seconds=_STOP_SECONDS_OF_SILENT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(rest_seconds, _QUIET_SECONDS))
            return True
        if timeout_seconds > _QUIET_SECONDS:
            logger.info(
                f"Waiting until MLflow at {self._settings.masked()['tracking_uri']} has everything, for "
                f"{timeout_seconds:.0f} seconds at most. The record is complete already."
            )
        return wait_or_stop(process, rest_seconds - _QUIET_SECONDS, stop_seconds=stop_seconds)


def _listen(process: subprocess.Popen[bytes] | None) -> threading.Thread | None:
    """Returns the thread that shows what the mirror has to tell the user. It ends when the mirror does."""
    if process is None or process.stdout is None:
        return None
    pipe = process.stdout

    def show() -> None:
        for line in pipe:
            logger.warning("%s", line.decode("utf-8", "replace").rstrip())

    # A daemon: where the training ends without closing its record, nothing waits for the mirror.
    thread = threading.Thread(target=show, name="himl-mirror-listener", daemon=True)
    thread.start()
    return thread


def close_pipes(process: subprocess.Popen[bytes], listener: threading.Thread | None) -> None:
    """Closes the pipes of a mirror that has ended, after its last words were shown."""
    if listener is not None:
        listener.join(_STOP_SECONDS)
    if process.stdout is not None and (listener is None or not listener.is_alive()):
        process.stdout.close()


def _raise_priority(process_id: int) -> None:
    """Gives the mirror, for which the user is waiting now, its full share back, where the system allows that."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process_id, 0)


def wake_up(process: subprocess.Popen[bytes]) -> None:
    """Tells the mirror that there is nothing more to come."""
    assert process.stdin is not None
    try:
        # A byte besides the end of the file: workers that the training has forked may keep the pipe open.
        process.stdin.write(b"\n")
        process.stdin.close()
    except OSError:  # it has ended already
        logger.debug("The mirror has ended before it was asked to.")


def wait_or_stop(process: subprocess.Popen[bytes], timeout_seconds: float, stop_seconds: float = _STOP_SECONDS) -> bool:
    """Returns True if the mirror has ended by itself in time, after ending it if it has not."""
    try:
        process.wait(max(0.0, timeout_seconds))
        return True
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(stop_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return False
