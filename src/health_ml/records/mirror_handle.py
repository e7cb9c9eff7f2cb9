"""What the training knows of its mirror: shows what it has to say, and waits for it at the end."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
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
_QUIET_SECONDS = 5.0
"""How long the end of a run waits without saying what for."""
_STOPPED = (RunStatus.PREEMPTED, RunStatus.CANCELLED)
_SECONDS_OF_STOPPED = 10.0
"""A run that was told to stop has little time: the mirror can be caught up later."""


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
        if self._process is not None and self._process.poll() not in (None, 0):
            self._start_again(self._process)
        if self._process is not None:
            process, self._process = self._process, None
            _raise_priority(process.pid)
            wake_up(process)
            self._wait_or_stop(process, timeout_seconds, silent_seconds)
            close_pipes(process, self._listener)
        progress = MirrorProgress.load(self._folder)
        if not progress.message:
            progress.settings = self._settings.masked()
            progress.is_complete = False
            progress.trouble = progress.trouble or f"see {self._folder / RECORD_MIRROR_LOG_FILE}"
            progress.message = lack_message(self._folder, progress)
        return progress.as_state()

    def _start_again(self, dead: subprocess.Popen[bytes]) -> None:
        """Replaces a mirror that has not lived to see the end of the run, for example because memory ran out."""
        logger.info("The mirror ended early, with exit code %s: another one takes over.", dead.returncode)
        wake_up(dead)
        close_pipes(dead, self._listener)
        self._process = self._restart()
        self._listener = _listen(self._process)

    def _wait_or_stop(self, process: subprocess.Popen[bytes], timeout_seconds: float, silent_seconds: float) -> None:
        if read_status(self._folder).status in _STOPPED:
            timeout_seconds = min(timeout_seconds, _SECONDS_OF_STOPPED)
        progress = MirrorProgress.load(self._folder)
        if progress.trouble and not progress.has_answered:
            wait_or_stop(process, min(timeout_seconds, silent_seconds), stop_seconds=0.5)
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(min(timeout_seconds, _QUIET_SECONDS))
            return
        if timeout_seconds > _QUIET_SECONDS:
            logger.info(
                f"Waiting until MLflow at {progress.settings.get('tracking_uri')} has everything, for "
                f"{timeout_seconds:.0f} seconds at most. The record is complete already."
            )
        wait_or_stop(process, max(0.0, timeout_seconds - _QUIET_SECONDS))


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


def wait_or_stop(process: subprocess.Popen[bytes], timeout_seconds: float, stop_seconds: float = _STOP_SECONDS) -> None:
    """Waits until the mirror has ended, and ends it if that takes longer."""
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(stop_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
