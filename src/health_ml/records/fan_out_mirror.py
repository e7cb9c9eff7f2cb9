"""The mirror of a fan-out: one process carries the fan-out and all of its trials, each as a run of its own.

In MLflow, the runs of the trials are nested below that of the fan-out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.mirror_loop import MirrorLoop, Patience
from health_ml.records.mirror_state import MirrorSettings, MirrorState, catch_up_hint, mirror_lock
from health_ml.records.reader import StatusView
from health_ml.settings import LIGHTNING_LOGS_FOLDER, LOGS_FOLDER, RECORD_RUN_DOCUMENT, RECORD_STATUS_FILE


def trial_settings(folder: FanOutFolder, index: int, settings: MirrorSettings) -> MirrorSettings:
    """Returns where a trial is mirrored to, if the settings say where its fan-out is."""
    tensorboard_folder = folder.trial_folder(index) / LOGS_FOLDER / LIGHTNING_LOGS_FOLDER
    return replace(
        settings,
        run_name=folder.trial_run_id(index),
        tensorboard_folder=str(tensorboard_folder) if settings.tensorboard_folder else "",
    )


class FanOutMirror:
    """Mirrors a fan-out and its trials. Only one may be at work per fan-out: hold the lock of its record.

    :param folder: Files of the fan-out.
    :param settings: Where to, with credentials.
    :param wait: Waits up to some seconds, and returns early if there is a reason to look at once.
    :param patience: How long to wait for what.
    :param tell: Tells the user, while the fan-out goes on, that something is wrong. It is called once at most.
    """

    def __init__(
        self,
        folder: FanOutFolder,
        settings: MirrorSettings,
        *,
        wait: Callable[[float], None],
        patience: Patience | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._wait = wait
        self._patience = patience or Patience()
        self._own = MirrorLoop(folder.record, settings, wait=wait, patience=self._patience, tell=tell)
        self._trials: dict[int, MirrorLoop] = {}
        self._locks: dict[int, ExitStack] = {}
        self._versions: dict[int, int] = {}
        self._incomplete: set[int] = set()
        self._is_stopping = False

    def request_stop(self, *_: object) -> None:
        """Asks to end as soon as the fan-out has ended, or soon in any case."""
        self._is_stopping = True
        for loop in (self._own, *self._trials.values()):
            loop.request_stop()

    def run(self) -> MirrorState:
        """Returns what was achieved when there is nothing more to do."""
        while True:
            status = self._own.push()
            is_at_end = self._own.is_at_end(status)
            self._push_trials(status, is_hopeless=is_at_end and self._own.error is not None)
            if is_at_end and not self._trials:
                return self._close(status)
            self._wait(min(loop.pause() for loop in (self._own, *self._trials.values())))

    def run_once(self) -> MirrorState:
        """Returns what was achieved by carrying over what is there now, with a few tries."""
        while True:
            status = self._own.push()
            self._push_trials(status, is_hopeless=False)
            waiting = [loop for loop in (self._own, *self._trials.values()) if not loop.is_exhausted]
            if not waiting or (self._own.error is not None and self._own.is_exhausted):
                break
            self._wait(min(loop.seconds_to_next_try for loop in waiting))
        self._push_trials(status, is_hopeless=True)
        return self._close(status)

    def _push_trials(self, own: StatusView, *, is_hopeless: bool) -> None:
        """Carries over what is new in the trials, and closes those that have nothing more to say.

        :param own: How the fan-out stands; if it has ended, no trial will write anything any more.
        :param is_hopeless: True to close all of them, whatever MLflow lacks.
        """
        self._open_trials()
        for index, loop in list(self._trials.items()):
            version = _version(self._folder.trial_record(index))
            status = loop.push(blocked_by=self._own.error)
            is_orphan = own.status.is_final and not status.status.is_final and loop.error is None
            if is_hopeless or (self._own.error is None and (is_orphan or loop.is_at_end(status))):
                self._versions[index] = version
                self._close_trial(index, status)

    def _open_trials(self) -> None:
        """Takes over the trials that are new, or that have been continued since they were closed."""
        for index in self._folder.trial_indices():
            record = self._folder.trial_record(index)
            if index in self._trials or self._versions.get(index) == _version(record):
                continue
            if not (record / f"{RECORD_RUN_DOCUMENT}.json").exists():
                continue
            lock = ExitStack()
            if not lock.enter_context(mirror_lock(record)):
                lock.close()
                continue
            self._locks[index] = lock
            settings = trial_settings(self._folder, index, self._settings)
            self._trials[index] = MirrorLoop(record, settings, wait=self._wait, patience=self._patience)
            if self._is_stopping:
                self._trials[index].request_stop()

    def _close_trial(self, index: int, status: StatusView) -> None:
        state = self._trials.pop(index).close(status)
        self._locks.pop(index).close()
        (self._incomplete.discard if state.is_complete else self._incomplete.add)(index)

    def _close(self, status: StatusView) -> MirrorState:
        missing = ""
        if self._incomplete and self._own.error is None:
            trials = ", ".join(str(index) for index in sorted(self._incomplete))
            missing = f"Something of trial {trials} is missing. {catch_up_hint(self._folder.record)}"
        return self._own.close(status, missing=missing)


def _version(record: Path) -> int:
    try:
        return (record / RECORD_STATUS_FILE).stat().st_mtime_ns
    except OSError:
        return 0
