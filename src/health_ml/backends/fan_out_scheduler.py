"""Runs the trials of a fan-out: starts as many as there is room for, follows them to their end, and starts the next."""

from __future__ import annotations

import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from health_ml.backends.fan_out_resources import Slots
from health_ml.backends.fan_out_results import best_value, end_of_trial, metrics_of_trial, tail_of_log
from health_ml.backends.trial_lock import take_lock
from health_ml.backends.trial_processes import TrialOrder, TrialProcess, TrialServer, start_fresh
from health_ml.environment import Place
from health_ml.errors import BackendError, did_you_mean
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.plan import JobPlan
from health_ml.planning.sampling import Outcome, create_sampler
from health_ml.planning.search_space import SearchSpace, TrialParameters
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.trial_log import TrialEnd, TrialLog, TrialState
from health_ml.settings import (
    ENV_ATTEMPT,
    ENV_FAN_OUT_FOLDER,
    ENV_PROJECT_ROOT,
    ENV_RUN_FOLDER,
    ENV_RUN_ID,
    ENV_START_DIRECTORY,
)
from health_ml.training.signals import RunInterrupted, SignalGuard

GRACE_SECONDS = 20.0
"""How long a trial may take to save its checkpoint; less than the supervisor of a job gives the whole fan-out."""
_POLL_SECONDS = 0.05


@dataclass
class RunningTrial:
    """A trial whose process lives.

    :param deadline: When it has run too long.
    :param kill_at: When it is ended by force, because it was asked to stop before.
    :param stopped_by: The signal that asked it to stop.
    :param is_signal_pending: True if the signal could not be sent yet.
    :param verdict: How it ends whatever its record says, or None.
    """

    state: TrialState
    process: TrialProcess
    deadline: float = math.inf
    kill_at: float = math.inf
    stopped_by: int | None = None
    is_signal_pending: bool = False
    verdict: TrialEnd | None = None

    def stop(self, number: int) -> None:
        """Asks the trial to stop, and sets the time when it is ended by force."""
        if self.stopped_by is None:
            self.stopped_by, self.is_signal_pending = number, True
            self.kill_at = time.monotonic() + GRACE_SECONDS

    def look(self) -> bool:
        """Sends what is to be sent now, and returns True if the process has ended."""
        if not self.process.is_alive():
            return True
        if time.monotonic() > self.kill_at:
            self.process.send_signal(signal.SIGKILL)
        elif self.is_signal_pending and self.stopped_by is not None:
            self.is_signal_pending = not self.process.send_signal(self.stopped_by)
        return False


class Scheduler:
    """Runs the trials of one fan-out. Only one may be at work per fan-out: hold the lock.

    :param folder: Files of the fan-out.
    :param plan: The plan; it has a search space.
    :param place: Where the trials run.
    :param slots: How many trials run at the same time, and what each gets.
    :param log: What has become of the trials before; everything that happens is appended.
    :param write: Gets one line for each start and end of a trial.
    """

    def __init__(
        self,
        folder: FanOutFolder,
        plan: JobPlan,
        *,
        place: Place,
        slots: Slots,
        log: TrialLog,
        write: Callable[[str], object],
    ) -> None:
        assert plan.search_space is not None
        self._folder = folder
        self._plan = plan
        self._space: SearchSpace = plan.search_space
        self._place = place
        self._slots = slots
        self._log = log
        self._write = write
        self._free_slots = list(range(slots.count))
        self._running: dict[int, RunningTrial] = {}
        self._to_continue: deque[TrialParameters] = deque()
        self._is_exhausted = False
        self._has_metric = self._space.primary_metric is None
        self.stop_reason = ""
        """Why the fan-out was stopped before all trials had run, or an empty text."""

    def take_up(self, *, is_rerunning_failed: bool) -> None:
        """Finds out what has become of the trials that a former scheduler has started.

        :param is_rerunning_failed: True to run those again that have failed.
        """
        for state in self._log.states.values():
            process = TrialProcess(self._folder.trial_lock(state.trial.index))
            if state.end is None and process.is_alive():
                self._adopt(state, process)
                continue
            if state.end is None:
                process.end_children()
                # Nobody saw it end: without a word in its record it was killed, even before it could begin one.
                end = end_of_trial(self._folder, state, stopped_as=RunStatus.KILLED)
                if end.is_settled:
                    self._log.finish(state, end)
            is_failed = state.end is not None and state.end.status is RunStatus.FAILED
            if not state.is_settled or (is_failed and is_rerunning_failed):
                self._to_continue.append(state.trial)
        outcomes = [
            Outcome(state.trial, self._value(state))
            for state in self._log.states.values()
            if state.is_settled and state.trial not in self._to_continue
        ]
        self._has_metric = self._has_metric or any(outcome.value is not None for outcome in outcomes)
        started = [state.trial for state in self._log.states.values()]
        self._sampler = create_sampler(self._space, started=started, outcomes=outcomes)

    def run(self, server: TrialServer | None, guard: SignalGuard) -> None:
        """Runs all trials that are left, or until somebody asks to stop.

        :param server: Starts trials; while it loads, trials of a former scheduler are followed. None if none is left.
        :param guard: Knows whether a signal came.
        """
        limit = self._space.timeout_seconds
        deadline = math.inf if limit is None else time.monotonic() + limit
        while self._running or (self.left and not self.stop_reason and guard.received is None):
            if guard.received is not None:
                self._stop_all(guard.received)
            elif self.stop_reason:
                self._stop_all(signal.SIGINT)
            elif time.monotonic() > deadline:
                self._stop_because(f"The search ran longer than its time limit of {limit:g} seconds.")
            elif server is not None:
                self._start_trials(server)
            self._reap()
            time.sleep(_POLL_SECONDS)

    @property
    def left(self) -> int:
        """How many trials are still to be started."""
        new = 0 if self._is_exhausted else self._space.trial_count - len(self._log.states)
        return len(self._to_continue) + max(0, new)

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start_trials(self, server: TrialServer) -> None:
        while self._free_slots and self.left and server.is_ready(0.0):
            trial = self._to_continue.popleft() if self._to_continue else self._sampler.ask()
            if trial is None:
                self._is_exhausted = True
            else:
                self._start(trial, server)

    def _start(self, trial: TrialParameters, server: TrialServer) -> None:
        lock_file = self._folder.trial_lock(trial.index)
        lock = take_lock(lock_file)
        if lock is None:
            raise BackendError(f"Another process runs trial {trial.index} of {self._folder.run_id}: see {lock_file}.")
        state = self._log.start(trial, slot=self._free_slots.pop(0))
        again = f" again (attempt {state.attempts})" if state.attempts > 1 else ""
        order = self._order(state)
        order.log.parent.mkdir(parents=True, exist_ok=True)
        process = TrialProcess(lock_file)
        try:
            if server.obstacle or not server.start(order, lock):
                process = start_fresh(order, lock, lock_file)
        finally:
            os.close(lock)
        self._follow(state, process)
        self._write(f"Trial {trial.index} started{again}: {describe(trial)} {self._counts()}")

    def _order(self, state: TrialState) -> TrialOrder:
        index = state.trial.index
        environment = {
            **self._plan.environment,
            **self._slots.shared_environment,
            **self._slots.environment(state.slot),
            ENV_RUN_ID: self._folder.trial_run_id(index),
            ENV_RUN_FOLDER: str(self._folder.trial_folder(index)),
            ENV_START_DIRECTORY: str(self._place.start_directory),
            ENV_PROJECT_ROOT: str(self._place.project_root),
            ENV_FAN_OUT_FOLDER: str(self._folder.run_folder),
            ENV_ATTEMPT: str(state.attempts - 1),
        }
        argv = (*self._plan.argv, *state.trial.arguments())
        return TrialOrder(argv, environment, self._place.start_directory, self._folder.trial_log(index))

    def _adopt(self, state: TrialState, process: TrialProcess) -> None:
        """Follows a trial that a former scheduler has started; it keeps the place that it was given."""
        if state.slot in self._free_slots:
            self._free_slots.remove(state.slot)
        self._follow(state, process)
        self._write(f"Trial {state.trial.index} is still running and is followed: {describe(state.trial)}")

    def _follow(self, state: TrialState, process: TrialProcess) -> None:
        limit = self._space.trial_timeout_seconds
        rest = math.inf if limit is None else limit - (time.time() - state.started)
        self._running[state.trial.index] = RunningTrial(state, process, time.monotonic() + rest)

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _stop_because(self, reason: str) -> None:
        if not self.stop_reason:
            self.stop_reason = reason
            cancelled = " The other trials are cancelled." if self._running or self.left else ""
            self._write(f"{reason}{cancelled}")

    def _stop_all(self, number: int) -> None:
        for trial in self._running.values():
            trial.stop(number)

    def _stop_if_too_long(self, trial: RunningTrial) -> None:
        if time.monotonic() > trial.deadline and trial.verdict is None:
            limit = self._space.trial_timeout_seconds
            trial.verdict = TrialEnd(RunStatus.FAILED, f"It ran longer than its time limit of {limit:g} seconds.")
            trial.stop(signal.SIGTERM)

    # --- ending -------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for index, trial in list(self._running.items()):
            self._stop_if_too_long(trial)
            if trial.look():
                trial.process.end_children()
                del self._running[index]
                if trial.state.slot < self._slots.count:
                    self._free_slots.append(trial.state.slot)
                self._end(trial)

    def _end(self, trial: RunningTrial) -> None:
        state = trial.state
        stopped_as = RunInterrupted(trial.stopped_by).status if trial.stopped_by is not None else None
        end = end_of_trial(self._folder, state, stopped_as=stopped_as)
        if trial.verdict is not None and end.status is not RunStatus.FINISHED:
            end = replace(trial.verdict, seconds=end.seconds)
            self._correct_record(state, end)
        self._log.finish(state, end)
        self._sampler.tell(state.trial, self._value(state))
        metrics = metrics_of_trial(self._folder, state.trial.index)
        self._report(state, end, metrics)
        if end.status is RunStatus.FINISHED:
            self._check_metric(state, metrics)
        elif end.status in (RunStatus.FAILED, RunStatus.KILLED) and self._plan.trials.is_failing_fast:
            self._stop_because(f"Trial {state.trial.index} failed, and --fail_fast was given.")

    def _correct_record(self, state: TrialState, end: TrialEnd) -> None:
        """Says in the record of a trial why it was stopped, which the trial cannot know."""
        index = state.trial.index
        folder = self._folder.trial_record(index)
        record = RunRecord(folder, run_id=self._folder.trial_run_id(index), attempt=state.attempts - 1)
        record.set_status(end.status, end.note)
        record.close()

    def _value(self, state: TrialState) -> float | None:
        """Returns what the sampler is told about a trial: its best result, or None if it failed."""
        if state.end is None or state.end.status is not RunStatus.FINISHED:
            return None
        return best_value(self._folder, state.trial.index, self._space)

    def _check_metric(self, state: TrialState, metrics: Mapping[str, float]) -> None:
        """Stops at the end of the first trial if it has not logged the metric that the search is about."""
        metric = self._space.primary_metric
        if self._has_metric or metric is None:
            return
        logged = sorted(metrics)
        self._has_metric = metric in logged
        if not self._has_metric:
            suggestion = did_you_mean(metric, logged)
            self._stop_because(
                f"Trial {state.trial.index} has not logged the primary metric '{metric}', only "
                f"{', '.join(logged) or 'nothing'}. {suggestion}".strip()
            )

    def _report(self, state: TrialState, end: TrialEnd, metrics: Mapping[str, float]) -> None:
        index = state.trial.index
        metric = self._space.primary_metric
        value = metrics.get(metric) if metric else None
        result = f", {metric}={value:.6g}" if value is not None else ""
        note = f" {end.note}" if end.note else ""
        self._write(
            f"Trial {index} {end.status.value} after {end.seconds:.1f} s: {describe(state.trial)}{result} "
            f"{self._counts()}{note}"
        )
        if end.status in (RunStatus.FAILED, RunStatus.KILLED):
            self._write(f"  Its log is {self._folder.trial_log(index)}, which ends with:")
            for line in tail_of_log(self._folder, index):
                self._write(f"    {line}")

    def _counts(self) -> str:
        return f"({len(self._running)} running, {self.left} to start)"


def describe(trial: TrialParameters) -> str:
    """Returns the values of a trial for people."""
    values = ((name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in trial.values)
    return ", ".join(f"{name}={text}" for name, text in values)
