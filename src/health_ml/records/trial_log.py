"""Which trials of a fan-out were started and how they ended: one line each, written before anything is done.

The file is all that a scheduler needs to know to take up a fan-out whose scheduler was killed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.search_space import TrialParameters
from health_ml.records.lines import read_rows
from health_ml.records.record import RunRecord, RunStatus

_STARTED = "started"
_ENDED = "ended"


@dataclass(frozen=True)
class TrialEnd:
    """How the last attempt of a trial ended.

    :param status: FINISHED if everything that was asked for was done.
    :param note: What a reader should know: an early stop, or the error.
    :param seconds: Wall time of all attempts.
    """

    status: RunStatus
    note: str = ""
    seconds: float = 0.0

    @property
    def is_settled(self) -> bool:
        """True if the trial is not continued when the fan-out is taken up again: it finished or failed by itself."""
        return self.status in (RunStatus.FINISHED, RunStatus.FAILED)


@dataclass
class TrialState:
    """What has become of one trial.

    :param trial: The trial.
    :param attempts: How often it was started.
    :param slot: The place that its last attempt was given.
    :param started: When its last attempt was started, in seconds since 1970-01-01 UTC.
    :param seconds_before: Wall time of the attempts before the last one.
    :param end: How its last attempt ended, or None.
    """

    trial: TrialParameters
    attempts: int = 0
    slot: int = 0
    started: float = 0.0
    seconds_before: float = 0.0
    end: TrialEnd | None = None

    @property
    def is_settled(self) -> bool:
        """True if the trial is not continued when the fan-out is taken up again."""
        return self.end is not None and self.end.is_settled

    def begin_attempt(self, *, slot: int, moment: float) -> None:
        """Notes that the trial is started, for the first time or again."""
        if self.end is not None:
            self.seconds_before, self.end = self.end.seconds, None
        self.attempts, self.slot, self.started = self.attempts + 1, slot, moment

    def seconds_until(self, moment: float) -> float:
        """Returns the wall time of all attempts if the last one ends at a moment."""
        return self.seconds_before + max(0.0, moment - self.started)


class TrialLog:
    """The file with the starts and ends of trials.

    :param record: The record of the fan-out, to append to.
    """

    def __init__(self, folder: FanOutFolder, record: RunRecord) -> None:
        self._file_name = folder.trials_file.name
        self._record = record
        self.states = read_trials(folder)

    def start(self, trial: TrialParameters, *, slot: int) -> TrialState:
        """Returns the state of a trial after noting that it starts, for the first time or again."""
        state = self.states.setdefault(trial.index, TrialState(trial))
        state.begin_attempt(slot=slot, moment=time.time())
        attempt = {"attempt": state.attempts - 1, "slot": slot, "time": state.started}
        row = {"event": _STARTED, **trial.to_json(), **attempt}
        self._record.append_row(self._file_name, row)
        return state

    def finish(self, state: TrialState, end: TrialEnd) -> None:
        """Notes how a trial ended."""
        state.end = end
        row = {
            "event": _ENDED,
            "index": state.trial.index,
            "attempt": state.attempts - 1,
            "time": time.time(),
            "status": end.status.value,
            "note": end.note,
            "seconds": end.seconds,
        }
        self._record.append_row(self._file_name, row)


def read_trials(folder: FanOutFolder) -> dict[int, TrialState]:
    """Returns the trials of a fan-out by number, in the order in which they were first started."""
    states: dict[int, TrialState] = {}
    for row in read_rows(folder.trials_file):
        if row.get("event") == _STARTED:
            trial = TrialParameters.from_json(row)
            state = states.setdefault(trial.index, TrialState(trial))
            state.begin_attempt(slot=int(row["slot"]), moment=float(row["time"]))
        elif row.get("event") == _ENDED and row.get("index") in states:
            end = TrialEnd(RunStatus(row["status"]), str(row["note"]), float(row["seconds"]))
            states[row["index"]].end = end
    return states
