"""What the trials of a fan-out found: read from their records, put together, and written for people and programs."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from health_ml.backends.trial_lock import is_held
from health_ml.errors import OutputError, RunNotFoundError
from health_ml.planning.early_termination import Goal
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.planning.search_space import SearchSpace
from health_ml.records.fan_out_report import FanOutReport, TrialResult
from health_ml.records.metric_history import MetricHistory
from health_ml.records.reader import read_document, read_record
from health_ml.records.record import RunRecord, RunStatus
from health_ml.records.trial_log import TrialEnd, TrialState, read_trials
from health_ml.settings import (
    CHECKPOINT_FOLDER,
    LAST_CHECKPOINT,
    RECORD_RUN_DOCUMENT,
)

_LOG_BYTES = 4096
_LOG_LINES = 5


def end_of_trial(folder: FanOutFolder, state: TrialState, *, stopped_as: RunStatus | None = None) -> TrialEnd:
    """Returns how a trial whose process has ended did so: what its record says, KILLED if it could not say so.

    :param stopped_as: How it ends if it was asked to stop and could not say anything any more.
    """
    now = time.time()
    try:
        view = read_record(folder.trial_record(state.trial.index)).status
    except RunNotFoundError:
        view = None
    if view is not None and view.attempt >= state.attempts - 1 and view.status.is_final and not view.is_derived:
        return TrialEnd(view.status, view.message, state.seconds_until(view.time))
    if stopped_as is not None:
        return TrialEnd(stopped_as, "It was stopped before it could save anything.", state.seconds_until(now))
    if view is None or view.attempt < state.attempts - 1:
        note = f"It ended before its record began: {_last_line(folder, state)}"
        return TrialEnd(RunStatus.FAILED, note, state.seconds_until(now))
    return TrialEnd(RunStatus.KILLED, "The process ended without a final status.", state.seconds_until(now))


def metrics_of_trial(folder: FanOutFolder, index: int) -> dict[str, float]:
    """Returns the last value of every metric that a trial has logged."""
    try:
        return read_record(folder.trial_record(index)).last_values
    except RunNotFoundError:
        return {}


def best_value(folder: FanOutFolder, index: int, space: SearchSpace) -> float | None:
    """Returns the best value of the primary metric over the epochs of a trial, or None if it has none."""
    if space.primary_metric is None:
        return None
    values = MetricHistory(folder.trial_record(index), space.primary_metric).values()
    return space.goal.best(values) if any(not math.isnan(value) for value in values) else None


def tail_of_log(folder: FanOutFolder, index: int) -> list[str]:
    """Returns the last lines that a trial has printed."""
    try:
        with folder.trial_log(index).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-_LOG_LINES:]


def _last_line(folder: FanOutFolder, state: TrialState) -> str:
    lines = tail_of_log(folder, state.trial.index)
    return lines[-1] if lines else "it printed nothing."


def make_report(folder: FanOutFolder, space: SearchSpace) -> FanOutReport:
    """Returns the results of a fan-out, as far as there are any."""
    states = sorted(read_trials(folder).values(), key=lambda state: state.trial.index)
    return FanOutReport(
        folder.run_id,
        [_result(folder, state) for state in states],
        primary_metric=space.primary_metric or "",
        is_minimized=space.goal is Goal.MINIMIZE,
    )


def _result(folder: FanOutFolder, state: TrialState) -> TrialResult:
    index = state.trial.index
    return TrialResult(
        index,
        folder.trial_run_id(index),
        dict(state.trial.values),
        state.end.status if state.end else _present_status(folder, index),
        metrics_of_trial(folder, index),
        state.end.seconds if state.end else None,
        state.end.note if state.end else "",
    )


def _present_status(folder: FanOutFolder, index: int) -> RunStatus:
    """Returns how a trial stands whose end nobody has noted: RUNNING only if its process lives."""
    if is_held(folder.trial_lock(index)):
        return RunStatus.RUNNING
    try:
        status = read_record(folder.trial_record(index)).status.status
    except RunNotFoundError:
        return RunStatus.KILLED
    return status if status.is_final else RunStatus.KILLED


def write_results(folder: FanOutFolder, report: FanOutReport, record: RunRecord) -> None:
    """Writes the table, the page, the statistics as metrics of the fan-out, and the link to the best checkpoint.

    :raises OutputError: If a file cannot be written.
    """
    try:
        folder.table_file.write_text(report.to_csv(), encoding="utf-8")
        folder.page_file.write_text(report.to_html(), encoding="utf-8")
        _link_best(folder, report)
    except OSError as error:
        place = error.filename or folder.run_folder
        raise OutputError(f"Cannot write {place}: {error.strerror or error}.", "Free some space.") from error
    metrics = statistics_as_metrics(report)
    if metrics:
        record.log_metrics(metrics, step=None)


def statistics_as_metrics(report: FanOutReport) -> Mapping[str, float]:
    """Returns mean, sd, min and max of each metric under names like ``val/loss/mean``."""
    metrics: dict[str, float] = {}
    for name, found in report.statistics().items():
        values = {"mean": found.mean, "sd": found.deviation, "min": found.minimum, "max": found.maximum}
        metrics.update({f"{name}/{kind}": value for kind, value in values.items() if not math.isnan(value)})
    return metrics


def _link_best(folder: FanOutFolder, report: FanOutReport) -> None:
    """Links the checkpoint of the best trial, with a relative path, so that the run folder can be moved."""
    target = folder.best_checkpoint
    checkpoint = checkpoint_of_trial(folder, report.best.index) if report.best is not None else None
    if checkpoint is None:
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(checkpoint, target.parent))
    except OSError:  # a file system without links
        shutil.copy2(checkpoint, temporary)
    temporary.replace(target)


def checkpoint_of_trial(folder: FanOutFolder, index: int) -> Path | None:
    """Returns the checkpoint that a trial has tested, or else its last one, or None if it keeps none."""
    trial = folder.trial_folder(index)
    tested = read_document(folder.trial_record(index) / f"{RECORD_RUN_DOCUMENT}.json").get("checkpoint")
    candidates = [trial / tested] if isinstance(tested, str) else []
    candidates.append(trial / CHECKPOINT_FOLDER / LAST_CHECKPOINT)
    return next((path for path in candidates if path.is_file()), None)
