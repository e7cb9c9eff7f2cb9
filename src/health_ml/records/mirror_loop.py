"""The work of the mirror: repeats until the run has ended and everything is mirrored, or nothing helps any more."""

from __future__ import annotations

import logging
import math
import random
import socket
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from health_ml.errors import OutputError
from health_ml.planning.secrets import mask_text
from health_ml.records.lines import read_lines
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, MirrorState, catch_up_hint
from health_ml.records.mlflow_store import is_permanent
from health_ml.records.reader import RecordView, StatusView, read_status
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.sinks import MlflowSink, TensorBoardSink
from health_ml.records.tracking import NO_TRACKING
from health_ml.settings import RECORD_METRICS_FILE

logger = logging.getLogger(__name__)


_LONGEST_REASON = 300


@dataclass(frozen=True)
class Patience:
    """How long the mirror waits for what.

    :param poll_seconds: Between two looks at the record.
    :param longest_pause: Longest time between two tries while a server does not answer.
    :param unreachable_seconds: After the end of the run, for a server that does not answer.
    :param catch_up_seconds: After the end of the run, for a server that is slow.
    :param stop_seconds: For the end of the run, after the mirror was asked to stop.
    """

    poll_seconds: float = 1.0
    longest_pause: float = 30.0
    unreachable_seconds: float = 10.0
    catch_up_seconds: float = 600.0
    stop_seconds: float = 20.0


IN_JOB = Patience(unreachable_seconds=150.0)
"""In a job of somebody else's machines: what is missing when the job ends cannot be carried over from its disk."""


class MirrorLoop:
    """Mirrors one record. Only one may be at work per record: hold the lock.

    :param settings: Where to, with credentials.
    :param wait: Waits up to some seconds, and returns early if there is a reason to look at once.
    :param patience: How long to wait for what.
    """

    def __init__(
        self,
        record_folder: Path,
        settings: MirrorSettings,
        *,
        wait: Callable[[float], None],
        patience: Patience | None = None,
    ) -> None:
        self._folder = record_folder
        self._wait = wait
        self._patience = patience or Patience()
        self._progress = MirrorProgress.load(record_folder)
        self._forget_other_store(settings)
        self._progress.settings = settings.masked()
        self._progress.is_complete, self._progress.message = False, ""
        self._tensorboard: TensorBoardSink | None = None
        self._mlflow: MlflowSink | None = None
        if settings.tensorboard_folder:
            self._tensorboard = TensorBoardSink(record_folder, Path(settings.tensorboard_folder), self._progress)
        if settings.tracking_uri != NO_TRACKING:
            self._mlflow = MlflowSink(record_folder, settings, self._progress)
        self._error: Exception | None = None
        self._tensorboard_error: OSError | None = None
        self._was_tried = False
        self._is_final = False
        self._failures = 0
        self._next_try = 0.0
        self._has_log = True
        self._ended_at: float | None = None
        self._stop_at: float | None = None

    def request_stop(self, *_: object) -> None:
        """Asks the loop to end as soon as the run has ended, or soon in any case."""
        self._stop_at = time.monotonic() + self._patience.stop_seconds

    def run(self) -> MirrorState:
        """Returns what was achieved when there is nothing more to do."""
        try:
            while True:
                status = self.push()
                if self.is_at_end(status):
                    return self.close(status)
                self._wait(self.pause())
        finally:
            self._close_tensorboard()

    def run_once(self) -> MirrorState:
        """Returns what was achieved by carrying over what is there now, with a few tries.

        Somebody reads what is logged meanwhile, so that it has no tracebacks.
        """
        self._has_log = False
        for _ in range(3):
            status = self.push()
            if self._error is None or self._is_hopeless():
                break
            self._wait(max(0.0, self._next_try - time.monotonic()))
        return self.close(status)

    @property
    def error(self) -> Exception | None:
        """Why MLflow lacks something, or None."""
        return self._error

    def push(self, *, blocked_by: Exception | None = None) -> StatusView:
        """Returns how the run stands, after carrying over what was in the record before.

        :param blocked_by: Why there is no sense in trying MLflow now.
        """
        status = self._read_status()
        self._is_final = status.status.is_final
        if self._tensorboard is not None:
            self._try_tensorboard(self._tensorboard)
        self._was_tried = self._mlflow is not None and time.monotonic() >= self._next_try
        if self._mlflow is not None and blocked_by is not None:
            self._error = blocked_by
        elif self._was_tried:
            self._try_mlflow(status)
        return status

    def _try_tensorboard(self, tensorboard: TensorBoardSink) -> None:
        try:
            tensorboard.push(self._save)
            self._tensorboard_error = None
        except OSError as error:
            if self._tensorboard_error is None:
                logger.warning("Cannot write the TensorBoard event file: %s", error)
            self._tensorboard_error = error
            tensorboard.reset()

    def _try_mlflow(self, status: StatusView) -> None:
        assert self._mlflow is not None
        try:
            self._mlflow.push(status, self._save_or_stop)
        except Exception as error:  # whatever a server does, the record is safe and can be mirrored later
            if str(error) != str(self._error):
                is_first_in_log = self._has_log and self._failures == 0
                logger.warning("MLflow: %s.", _reason(error), exc_info=is_first_in_log)
            self._error = error
            self._failures += 1
            self._progress.message = self._message(status, self._mlflow.dropped)
            self._save()
            longest = min(2.0 if self._is_final else math.inf, self._patience.longest_pause)
            pause = min(longest, 0.5 * 2 ** min(self._failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
            self._next_try = time.monotonic() + pause
        else:
            if self._error is not None:
                logger.info("MLflow answers again.")
            self._error, self._failures = None, 0

    def _read_status(self) -> StatusView:
        status = read_status(self._folder)
        if status.is_derived:
            # On another machine nobody could tell that the process is gone: say it in the record.
            record = RunRecord(self._folder, run_id=RecordView(self._folder).run_id, attempt=status.attempt)
            try:
                record.set_status(RunStatus.KILLED, status.message)
            except OutputError as error:
                logger.warning("%s", error)
            record.close()
        return status

    def is_at_end(self, status: StatusView) -> bool:
        """Returns True if there is nothing more to do, or nothing helps any more.

        :param status: What the last push returned.
        """
        now = time.monotonic()
        if not self._folder.is_dir():
            return True
        if not status.status.is_final:
            self._ended_at = None
            return self._stop_at is not None and now > self._stop_at
        if self._ended_at is None:
            self._ended_at = now
            if self._mlflow is not None and not self._was_tried:
                self._next_try = 0.0
                return False
        if self._error is None:
            return True
        waited = now - self._ended_at
        is_unreachable = self._failures >= 3 and waited > self._patience.unreachable_seconds
        is_too_long = waited > self._patience.catch_up_seconds or self._stop_at is not None
        return self._is_hopeless() or is_unreachable or is_too_long

    def _is_hopeless(self) -> bool:
        return self._error is not None and is_permanent(self._error)

    def pause(self) -> float:
        """Returns how long to wait before the next push."""
        if self._ended_at is None:
            return self._patience.poll_seconds
        return max(0.05, min(self._patience.poll_seconds, self._next_try - time.monotonic()))

    def close(self, status: StatusView, *, missing: str = "") -> MirrorState:
        """Returns what was achieved, after writing it down.

        :param status: What the last push returned.
        :param missing: What else is missing, as a sentence.
        """
        self._close_tensorboard()
        dropped = self._mlflow.dropped if self._mlflow else []
        has_all = self._error is None and self._tensorboard_error is None and not missing
        self._progress.is_complete = has_all and status.status.is_final
        self._progress.message = f"{self._message(status, dropped)} {missing}".strip()
        self._save()
        logger.info("%s", self._progress.message)
        return self._progress.as_state()

    def _close_tensorboard(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _message(self, status: StatusView, dropped: list[str]) -> str:
        uri = self._progress.settings["tracking_uri"]
        if self._error is not None:
            position = self._progress.positions.get(RECORD_METRICS_FILE, 0)
            missing = len(read_lines(self._folder / RECORD_METRICS_FILE, position))
            return (
                f"The record in {self._folder} is complete, but MLflow at {uri} lacks its last {missing} rows of "
                f"metrics and the status: {_reason(self._error)}. {catch_up_hint(self._folder)}"
            )
        if self._tensorboard_error is not None:
            return f"The TensorBoard event file could not be written: {self._tensorboard_error}."
        if self._mlflow is None:
            return "Not mirrored to MLflow (--tracking_uri=none)."
        note = f" It refused to store {', '.join(dropped[:10])}: see the record." if dropped else ""
        state = "Mirrored" if status.status.is_final else "Mirrored what there is so far"
        return f"{state} to MLflow at {uri}.{note}"

    def _forget_other_store(self, settings: MirrorSettings) -> None:
        """Starts from the beginning in a store that is not the one that the positions are about."""
        before = self._progress.settings.get("tracking_uri", "")
        if before and before != settings.masked()["tracking_uri"]:
            self._progress.mlflow_run_id = None
            self._progress.positions, self._progress.documents, self._progress.final_status = {}, {}, ""

    def _save_or_stop(self) -> None:
        """Saves how far MLflow came; interrupts a slow server if the mirror was asked to stop."""
        self._save()
        if self._stop_at is not None and self._is_final:
            raise TimeoutError("the mirror was stopped before MLflow had caught up.")

    def _save(self) -> None:
        try:
            self._progress.save(self._folder)
        except OSError as error:
            # A full disk: the next one to continue asks the server what it has.
            logger.warning("Cannot write how far the mirror came: %s", error)


def _reason(error: BaseException) -> str:
    """Returns what went wrong as the end of a sentence, without secrets; of what MLflow has wrapped, the innermost."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, ConnectionRefusedError):
            return "nobody answers there (connection refused)"
        if isinstance(current, socket.gaierror):
            return "there is no such host"
        if isinstance(current, TimeoutError) and current.errno is not None:
            return f"no answer in time ({current.strerror})"
        current = current.__cause__ or current.__context__
    text = mask_text(str(error)).strip().partition("\n")[0]
    return textwrap.shorten(text, _LONGEST_REASON, placeholder=" …").rstrip(".") or type(error).__name__
