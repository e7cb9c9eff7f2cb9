"""The queue of submitted jobs: what becomes of them, and when."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azureml.execution import Execution
from tests.azureml.search import trial_values
from tests.azureml.state import Job, now

if TYPE_CHECKING:
    from tests.azureml.cloud import Cloud

TRIALS_AT_ONCE = 2
"""However many a sweep allows: the machines of the tests have few cores."""


class Jobs:
    """Holds submitted jobs until they are executed or cancelled.

    :param folder: Where jobs are executed.
    """

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self._cloud = cloud
        self._folder = folder
        self._lock = threading.Lock()
        self._pending: list[Job] = []
        self._threads: dict[str, threading.Thread] = {}
        self._executions: dict[str, Execution] = {}
        self._is_executing = False

    def submit(self, job: Job) -> None:
        """Takes a new job: it waits, or starts now if jobs are being executed."""
        with self._lock:
            self._pending.append(job)
        if self._is_executing:
            self._start_pending()

    def pending(self) -> list[Job]:
        """Returns the jobs that wait."""
        with self._lock:
            return list(self._pending)

    def forget(self) -> None:
        """Forgets the jobs that were never executed."""
        with self._lock:
            self._pending.clear()

    def cancel(self, job: Job) -> None:
        """Ends a job that waits; one that runs is told to end."""
        job.is_cancel_requested = True
        with self._lock:
            is_waiting = job in self._pending or (job.name not in self._threads and job.name not in self._executions)
            if job in self._pending:
                self._pending.remove(job)
        for name in job.children:
            self.cancel(self._cloud.state.jobs[name])
        if is_waiting and not job.is_final:
            job.status, job.ended = "Canceled", now()
        elif not job.is_final:
            job.status = "CancelRequested"

    def preempt(self, job: Job) -> None:
        """Takes the nodes of a running job away."""
        if job.name not in self._executions:
            raise ValueError(f"Job {job.name} is not running: its status is {job.status}.")
        self._executions[job.name].preempt()

    @contextmanager
    def executing(self, timeout: float) -> Iterator[None]:
        """Executes jobs, those that wait and those that come, and waits at the end until all have ended."""
        self._is_executing = True
        try:
            self._start_pending()
            yield
            self._wait(timeout)
        except BaseException:
            for name in list(self._threads):
                self.cancel(self._cloud.state.jobs[name])
            self._wait(60)
            raise
        finally:
            self._is_executing = False
            self._threads.clear()

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for name, thread in list(self._threads.items()):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"Job {name} still runs after {timeout:g} seconds.")

    def _start_pending(self) -> None:
        with self._lock:
            jobs, self._pending = self._pending, []
            for job in jobs:
                thread = threading.Thread(target=self._execute, args=(job,), name=f"job-{job.name}")
                self._threads[job.name] = thread
                thread.start()

    def _execute(self, job: Job) -> None:
        if job.kind == "Sweep":
            self._execute_sweep(job)
            return
        execution = Execution(self._cloud, job, self._folder / job.name)
        self._executions[job.name] = execution
        try:
            execution.run()
        finally:
            del self._executions[job.name]

    def _execute_sweep(self, sweep: Job) -> None:
        sweep.status, sweep.started = "Running", now()
        trials = [_trial(sweep, index, values) for index, values in enumerate(trial_values(sweep.body))]
        for trial in trials:
            self._cloud.state.jobs[trial.name] = trial
            sweep.children.append(trial.name)
        limits = sweep.body.get("limits") or {}
        at_once = min(TRIALS_AT_ONCE, limits.get("maxConcurrentTrials") or TRIALS_AT_ONCE)
        with ThreadPoolExecutor(at_once, thread_name_prefix=f"trial-{sweep.name}") as pool:
            list(pool.map(self._execute_trial, trials))
        best = self._best(sweep, trials)
        if best:
            sweep.properties |= {"best_child_run_id": best[0], "score": str(best[1])}
        sweep.ended = now()
        if sweep.is_cancel_requested:
            sweep.status = "Canceled"
        else:
            sweep.status = "Completed" if any(trial.status == "Completed" for trial in trials) else "Failed"

    def _execute_trial(self, trial: Job) -> None:
        if not trial.is_final:
            self._execute(trial)

    def _best(self, sweep: Job, trials: list[Job]) -> tuple[str, float] | None:
        """Returns the trial with the best last value of the sweep's metric, if any has logged it."""
        objective = sweep.body["objective"]
        found = []
        for trial in trials:
            value = self._cloud.mlflow.last_metric(trial.name, objective["primaryMetric"])
            if value is not None:
                found.append((trial.name, value))
        pick = max if str(objective["goal"]).lower() == "maximize" else min
        return pick(found, key=lambda pair: pair[1]) if found else None


def _trial(sweep: Job, index: int, values: dict[str, Any]) -> Job:
    """Returns one child of a sweep as the service makes it."""
    name = f"{sweep.name}_{index}"
    trial, limits = sweep.body["trial"], sweep.body.get("limits") or {}
    shared = ("experimentName", "computeId", "identity", "inputs", "outputs", "resources", "queueSettings")
    body = {key: sweep.body[key] for key in shared if key in sweep.body}
    body |= {"jobType": "Command", "displayName": name, **trial}
    if limits.get("trialTimeout"):
        body["limits"] = {"jobLimitsType": "Command", "timeout": limits["trialTimeout"]}
    job = Job(name, body, parent=sweep.name, parameters=values, status="Queued")
    job.tags = {"hyperparameters": json.dumps(values)}
    return job
