"""The work of the mirror: repeats until the run has ended and everything is mirrored, or nothing helps any more."""

from __future__ import annotations

import logging
import math
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from health_ml.errors import OutputError
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings, MirrorState, catch_up_hint, lack_message
from health_ml.records.reader import RecordView, StatusView, read_status
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.sinks import MlflowSink, TensorBoardSink
from health_ml.records.tracking import NO_TRACKING
from health_ml.records.trouble import Trouble, diagnose

logger = logging.getLogger(__name__)

_TRIES = 3
"""Tries that have to fail, one after the other and without any progress, before a store counts as unreachable."""
_LONGEST_PAUSE_AT_END = 2.0
_LONG_GONE_SECONDS = 60.0
"""A server that has not answered for so long before the run ended is not expected back in the next seconds."""


@dataclass(frozen=True)
class Patience:
    """How long the mirror waits for what.

    :param poll_seconds: Between two looks at the record.
    :param longest_pause: Longest time between two tries while a server does not answer.
    :param unreachable_seconds: After the end of the run, for a server that does not answer any more.
    :param silent_seconds: After the end of the run, for a server that did not answer while the run went on either.
    :param catch_up_seconds: After the end of the run, for a server that is slow.
    :param stop_seconds: For the end of the run, after the mirror was asked to stop.
    :param tell_seconds: Before the user is told, while the run goes on, that a server does not answer.
    """

    poll_seconds: float = 1.0
    longest_pause: float = 30.0
    unreachable_seconds: float = 10.0
    silent_seconds: float = 0.0
    catch_up_seconds: float = 600.0
    stop_seconds: float = 20.0
    tell_seconds: float = 10.0


IN_JOB = Patience(unreachable_seconds=150.0, silent_seconds=150.0)
"""In a job of somebody else's machines: what is missing when the job ends cannot be carried over from its disk."""


class MirrorLoop:
    """Mirrors one record. Only one may be at work per record: hold the lock.

    :param settings: Where to, with credentials.
    :param wait: Waits up to some seconds, and returns early if there is a reason to look at once.
    :param patience: How long to wait for what.
    :param tell: Tells the user, while the run goes on, that something is wrong. It is called once at most.
    """

    def __init__(
        self,
        record_folder: Path,
        settings: MirrorSettings,
        *,
        wait: Callable[[float], None],
        patience: Patience | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = record_folder
        self._wait = wait
        self._tell = tell
        self._patience = patience or Patience()
        self._progress = MirrorProgress.load(record_folder)
        self._forget_other_store(settings)
        self._progress.settings = settings.masked()
        self._progress.is_complete, self._progress.message = False, ""
        self._progress.has_answered, self._progress.trouble, self._progress.advice = False, "", ""
        self._tensorboard: TensorBoardSink | None = None
        self._mlflow: MlflowSink | None = None
        if settings.tensorboard_folder:
            self._tensorboard = TensorBoardSink(record_folder, Path(settings.tensorboard_folder), self._progress)
        if settings.tracking_uri != NO_TRACKING:
            self._mlflow = MlflowSink(record_folder, settings, self._progress)
        self._error: Exception | None = None
        self._trouble: Trouble | None = None
        self._failing_since = 0.0
        self._tensorboard_error: OSError | None = None
        self._was_tried = False
        self._is_final = False
        self._failures = 0
        self._next_try = 0.0
        self._has_log = True
        self._ended_at: float | None = None
        self._stop_at: float | None = None
        if not self._progress.record_id:
            self._progress.record_id = uuid.uuid4().hex
            self._save()  # before a run gets it, so that its answer may be lost

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
        while True:
            status = self.push()
            if self.is_exhausted:
                break
            self._wait(self.seconds_to_next_try)
        return self.close(status)

    @property
    def is_exhausted(self) -> bool:
        """True if MLflow lacks nothing, or if some more tries in a row are no use."""
        return self._error is None or self._is_hopeless() or self._failures >= _TRIES

    @property
    def seconds_to_next_try(self) -> float:
        """How long a store that did not answer is left alone; 0 if it answers."""
        return max(0.0, self._next_try - time.monotonic()) if self._error is not None else 0.0

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
            self._mlflow.push(status, self._note_progress)
        except Exception as error:  # whatever a server does, the record is safe and can be mirrored later
            self._note_failure(error)
        else:
            if self._error is not None:
                logger.info("MLflow answers again.")
            self._error, self._trouble, self._failures = None, None, 0
            self._progress.trouble = self._progress.advice = ""

    def _note_failure(self, error: Exception) -> None:
        """Notes why MLflow did not take something, and when to try again."""
        trouble = diagnose(error)
        if self._trouble is None or trouble.reason != self._trouble.reason:
            level = logging.WARNING if self._has_log else logging.DEBUG
            logger.log(level, "MLflow: %s.", trouble.reason, exc_info=error if self._trouble is None else None)
        if self._error is None:
            self._failing_since = time.monotonic()
        self._error, self._trouble = error, trouble
        self._failures += 1
        self._progress.trouble, self._progress.advice = trouble.reason, trouble.advice
        self._save()
        longest = min(_LONGEST_PAUSE_AT_END if self._is_final else math.inf, self._patience.longest_pause)
        pause = min(longest, 0.5 * 2 ** min(self._failures, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        # Nobody heals a refusal by asking again and again; some servers lock out who does.
        self._next_try = math.inf if trouble.is_permanent else time.monotonic() + pause
        self._tell_once(trouble)

    def _tell_once(self, trouble: Trouble) -> None:
        """Tells the user what is wrong while the run goes on; at its end, they are told anyway."""
        is_short = time.monotonic() - self._failing_since < self._patience.tell_seconds
        if self._tell is None or self._is_final or (is_short and not trouble.is_permanent):
            return
        tell, self._tell = self._tell, None
        at_end, soon = "is tried once more when the run ends", "is carried over as soon as it answers"
        address = self._progress.settings["tracking_uri"]
        tell(
            f"MLflow at {address} does not take the metrics of this run: {trouble.reason}. {trouble.advice}".rstrip()
            + " The training goes on and its record is complete; what is missing "
            + f"{at_end if trouble.is_permanent else soon}."
        )

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
        is_unreachable = self._failures >= _TRIES and waited > self._longest_wait(self._ended_at)
        is_too_long = waited > self._patience.catch_up_seconds or self._stop_at is not None
        return self._is_hopeless() or is_unreachable or is_too_long

    def _longest_wait(self, ended_at: float) -> float:
        """Returns how long to wait after the end of the run for a server that does not answer."""
        is_long_gone = ended_at - self._failing_since > _LONG_GONE_SECONDS
        is_expected = self._progress.has_answered and not is_long_gone
        return self._patience.unreachable_seconds if is_expected else self._patience.silent_seconds

    def _is_hopeless(self) -> bool:
        return self._error is not None and diagnose(self._error).is_permanent

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
        missing_files = self._mlflow.missing_files if self._mlflow else {}
        has_all = self._error is None and self._tensorboard_error is None and not missing and not missing_files
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
            trouble = diagnose(self._error)
            self._progress.trouble, self._progress.advice = trouble.reason, trouble.advice
            return lack_message(self._folder, self._progress)
        if self._tensorboard_error is not None:
            reason = f"The TensorBoard event file could not be written: {self._tensorboard_error}."
            return f"{reason} {catch_up_hint(self._folder)}"
        if self._mlflow is None:
            return "Not mirrored to MLflow (--tracking_uri=none)."
        if self._mlflow.missing_files:
            names, reason = ", ".join(self._mlflow.missing_files), next(iter(self._mlflow.missing_files.values()))
            return (
                f"MLflow at {uri} has the metrics, but not the files {names}: {reason}. {catch_up_hint(self._folder)}"
            )
        note = f" It refused to store {', '.join(dropped[:10])}: see the record." if dropped else ""
        state = "Mirrored" if status.status.is_final else "Mirrored what there is so far"
        return f"{state} to MLflow at {uri}.{note}"

    def _forget_other_store(self, settings: MirrorSettings) -> None:
        """Starts from the beginning in a store that is not the one that the positions are about."""
        before = self._progress.settings.get("tracking_uri", "")
        if before and before != settings.masked()["tracking_uri"]:
            self._progress.mlflow_run_id = None
            self._progress.positions, self._progress.documents, self._progress.files = {}, {}, {}
            self._progress.final_status = ""

    def _note_progress(self) -> None:
        """Saves how far MLflow came; interrupts a slow server if the mirror was asked to stop."""
        self._progress.has_answered = True
        self._failures = 0
        self._save()
        if self._stop_at is not None and self._is_final:
            raise TimeoutError("the mirror was stopped before MLflow had caught up.")

    def _save(self) -> None:
        try:
            self._progress.save(self._folder)
        except OSError as error:
            # A full disk: the next one to continue asks the server what it has.
            logger.warning("Cannot write how far the mirror came: %s", error)
