"""Answers questions about a run from its record alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from health_ml.errors import RunNotFoundError
from health_ml.records.encoding import decode_number
from health_ml.records.lines import read_rows
from health_ml.records.process_identity import is_dead
from health_ml.records.record import RunStatus
from health_ml.settings import (
    RECORD_ATTEMPTS_FILE,
    RECORD_FOLDER,
    RECORD_HYPERPARAMETERS_FILE,
    RECORD_METRICS_FILE,
    RECORD_MIRROR_DOCUMENT,
    RECORD_RUN_DOCUMENT,
    RECORD_STATUS_FILE,
    RECORD_TAGS_FILE,
)


class MetricsRow(NamedTuple):
    """Metrics that were logged together.

    :param time: When, in seconds since 1970-01-01 UTC.
    :param step: Optimizer step, or None if the logger gave none.
    :param epoch: Epoch, or None.
    :param attempt: Restart of the run that logged it.
    """

    time: float
    step: int | None
    epoch: int | None
    attempt: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class StatusView:
    """How a run stands.

    :param status: KILLED also for a run whose process is gone although nobody wrote a final status.
    :param message: What the run said about it.
    :param attempt: Restart of the run that this is about.
    :param time: When it was written, in seconds since 1970-01-01 UTC.
    :param is_derived: True if the record itself still says RUNNING.
    """

    status: RunStatus
    message: str
    attempt: int
    time: float
    is_derived: bool = False


class RecordView:
    """What the record of a run says. Files are read when they are first asked for, and only once.

    :param folder: Folder of the record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def run_id(self) -> str:
        """Id of the run, empty if the record does not know it."""
        return str(self.document(RECORD_RUN_DOCUMENT).get("run_id") or self._last_status.get("run_id", ""))

    @cached_property
    def metrics(self) -> list[MetricsRow]:
        """All rows of metrics in the order in which they were logged, as one history.

        An attempt repeats what an earlier one did after its last checkpoint. What that one logged there is left out.
        """
        spans = [range(*row["replaced"]) for row in self.attempts if row.get("replaced")]
        return list(parse_metrics(read_rows(self.folder / RECORD_METRICS_FILE, without=spans)))

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """One row for each start of the training: attempt, and the checkpoint, epoch and step it continued from."""
        return read_rows(self.folder / RECORD_ATTEMPTS_FILE)

    @cached_property
    def last_values(self) -> dict[str, float]:
        """The last value of each metric."""
        values: dict[str, float] = {}
        for row in self.metrics:
            values.update(row.metrics)
        return values

    @cached_property
    def hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters; numbers that JSON lacks are the texts ``nan``, ``inf`` and ``-inf``."""
        return _merged(read_rows(self.folder / RECORD_HYPERPARAMETERS_FILE), "values")

    @cached_property
    def tags(self) -> dict[str, Any]:
        """Tags, the latest value of each."""
        return _merged(read_rows(self.folder / RECORD_TAGS_FILE), "tags")

    @cached_property
    def status(self) -> StatusView:
        """How the run stands, KILLED if it should be running and its process is gone."""
        return status_from_row(self._last_status)

    def document(self, name: str) -> dict[str, Any]:
        """Returns the document ``<name>.json``, empty if there is none or it cannot be read."""
        return read_document(self.folder / f"{name}.json")

    @cached_property
    def _last_status(self) -> dict[str, Any]:
        return latest_status(read_rows(self.folder / RECORD_STATUS_FILE)) or {}


def read_record(folder: Path) -> RecordView:
    """Returns a view of the record in a folder: the folder ``run/`` of a run, or the run folder itself.

    :raises RunNotFoundError: If there is no record.
    """
    for candidate in (folder, folder / RECORD_FOLDER):
        if (candidate / RECORD_STATUS_FILE).is_file() or (candidate / f"{RECORD_RUN_DOCUMENT}.json").is_file():
            return RecordView(candidate)
    raise RunNotFoundError(
        f"There is no record of a run in {folder}.",
        f"A run folder has a folder '{RECORD_FOLDER}' with the files {RECORD_RUN_DOCUMENT}.json and "
        f"{RECORD_STATUS_FILE}.",
    )


def get_mlflow_run_id(record_folder: Path) -> str | None:
    """Returns the id that MLflow gave to the run, or None if it has not been mirrored there."""
    run_id = read_document(record_folder / f"{RECORD_MIRROR_DOCUMENT}.json").get("mlflow_run_id")
    return str(run_id) if run_id else None


def read_document(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, empty if there is none or it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def parse_metrics(rows: list[dict[str, Any]]) -> Iterator[MetricsRow]:
    """Yields the rows of a metrics file, without the values that are not numbers."""
    for row in rows:
        decoded = {name: decode_number(value) for name, value in (row.get("metrics") or {}).items()}
        yield MetricsRow(
            time=decode_number(row.get("time")) or 0.0,
            step=row.get("step"),
            epoch=row.get("epoch"),
            attempt=row.get("attempt") or 0,
            metrics={name: value for name, value in decoded.items() if value is not None},
        )


def latest_status(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the last status of the last attempt: what is said late about an earlier attempt does not count."""
    return max(reversed(rows), key=lambda row: row.get("attempt") or 0, default=None)


def read_status(record_folder: Path) -> StatusView:
    """Returns how a run stands."""
    return status_from_row(latest_status(read_rows(record_folder / RECORD_STATUS_FILE)) or {})


def status_from_row(row: dict[str, Any]) -> StatusView:
    """Returns the status on a line, KILLED if it says RUNNING and the process that wrote it is gone."""
    names = RunStatus.__members__
    status = RunStatus[row["status"]] if row.get("status") in names else RunStatus.RUNNING
    message, attempt, time = str(row.get("message") or ""), row.get("attempt") or 0, row.get("time") or 0.0
    if status is RunStatus.RUNNING and is_dead(row):
        return StatusView(RunStatus.KILLED, "The process ended without a final status.", attempt, time, is_derived=True)
    return StatusView(status, message, attempt, time)


def _merged(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for row in rows:
        values = row.get(key)
        merged.update(values if isinstance(values, dict) else {})
    return merged
