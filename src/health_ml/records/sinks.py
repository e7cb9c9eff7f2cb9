"""Carries what is new in a record to TensorBoard and to MLflow, and remembers how far it came."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from health_ml.environment import process_environment
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.lines import CHUNK_BYTES, Line, read_lines
from health_ml.records.mirror_state import MirrorProgress, MirrorSettings
from health_ml.records.mlflow_limits import is_azureml
from health_ml.records.mlflow_store import MlflowRun, Point, clean_name, database_path, open_client
from health_ml.records.reader import MetricsRow, StatusView, parse_metrics, read_document
from health_ml.records.record import RunStatus
from health_ml.records.tensorboard_writer import ScalarWriter
from health_ml.records.trouble import diagnose
from health_ml.settings import (
    RECORD_CONFIG_DOCUMENT,
    RECORD_GIT_DOCUMENT,
    RECORD_GIT_PATCH_FILE,
    RECORD_HYPERPARAMETERS_FILE,
    RECORD_METRICS_FILE,
    RECORD_PACKAGES_DOCUMENT,
    RECORD_RUN_DOCUMENT,
    RECORD_TAGS_FILE,
)

logger = logging.getLogger(__name__)

_ENV_MLFLOW_RUN_ID = "MLFLOW_RUN_ID"
_PARENT_TAG = "mlflow.parentRunId"
_POINTS_PER_BATCH = 1000
PARAMETER_METRICS = "hyperparameters"
"""Metrics with this prefix are parameters."""
MAX_NUMERIC_PARAMETERS = 20
"""AzureML promises to take 50 names of metrics for a run."""
_FILE_TRIES = 2
_FILE_TRIES_AT_END = 3
_MLFLOW_STATUS = {
    RunStatus.QUEUED: "SCHEDULED",
    RunStatus.RUNNING: "RUNNING",
    RunStatus.FINISHED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.KILLED: "KILLED",
    RunStatus.PREEMPTED: "KILLED",
    RunStatus.CANCELLED: "KILLED",
}
_ARTIFACTS = (
    f"{RECORD_RUN_DOCUMENT}.json",
    f"{RECORD_CONFIG_DOCUMENT}.json",
    f"{RECORD_GIT_DOCUMENT}.json",
    f"{RECORD_PACKAGES_DOCUMENT}.json",
    RECORD_GIT_PATCH_FILE,
    RECORD_HYPERPARAMETERS_FILE,
)


class TensorBoardSink:
    """Writes the metrics of a record to an event file."""

    def __init__(self, record_folder: Path, folder: Path, progress: MirrorProgress) -> None:
        self._metrics = record_folder / RECORD_METRICS_FILE
        self._folder = folder
        self._progress = progress
        self._writer: ScalarWriter | None = None
        self._position = int(progress.event_file.get("position", 0))

    def push(self, save: Callable[[], None]) -> None:
        """Writes everything that is new."""
        while lines := read_lines(self._metrics, self._position, chunk_bytes=CHUNK_BYTES):
            writer = self._open()
            for row in parse_metrics([line.row for line in lines if line.row is not None]):
                writer.add(row.metrics, step=_step(row), wall_time=row.time)
            self._position = lines[-1].end
            self._progress.event_file = {
                "name": writer.file_name,
                "size": writer.flush(),
                "position": self._position,
            }
            save()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def reset(self) -> None:
        """Goes back to what is certain: the next push continues the file where it was complete."""
        with suppress(OSError):
            self.close()
        self._writer = None
        self._position = int(self._progress.event_file.get("position", 0))

    def _open(self) -> ScalarWriter:
        if self._writer is None:
            saved = self._progress.event_file
            self._writer = ScalarWriter(self._folder, file_name=saved.get("name", ""), size=int(saved.get("size", 0)))
        return self._writer


class MlflowSink:
    """Writes a record to an MLflow store.

    :param settings: With credentials.
    """

    def __init__(self, record_folder: Path, settings: MirrorSettings, progress: MirrorProgress) -> None:
        self._folder = record_folder
        self._settings = settings
        self._progress = progress
        self._run: MlflowRun | None = None
        # Whoever wrote before may have been killed between sending a batch and noting that it was sent.
        self._is_uncertain = True
        self._is_ours = True
        self._file_tries: dict[str, int] = {}
        self.missing_files: dict[str, str] = {}

    def push(self, status: StatusView, save: Callable[[], None]) -> None:
        """Writes everything that is new; the position is saved after each batch.

        :param status: How the run stood before this was called: what it logged before is all there.
        :raises Exception: Whatever MLflow raises. Calling again continues where it stopped and doubles nothing.
        """
        run = self._open()
        if self._progress.mlflow_run_id != run.run_id:
            self._progress.mlflow_run_id = run.run_id
            save()
        self._push_documents(run, save)
        self._push_values(RECORD_TAGS_FILE, "tags", run.log_tags, save)
        self._push_values(RECORD_HYPERPARAMETERS_FILE, "values", run.log_params, save)
        self._push_metrics(run, save)
        self._push_status(run, status, save)
        if self._keeps_artifacts:
            self._push_files(run, save, tries=_FILE_TRIES_AT_END if status.status.is_final else _FILE_TRIES)

    @property
    def dropped(self) -> list[str]:
        """Names of what the server refuses to store."""
        return self._run.dropped if self._run else []

    def _open(self) -> MlflowRun:
        """Returns the run in the store, made at the first call."""
        if self._run is None:
            client = open_client(self._settings.tracking_uri)
            fan_out = FanOutFolder.of_trial(self._folder.parent)
            adopted = process_environment().get(_ENV_MLFLOW_RUN_ID) if fan_out is None else None
            known = self._progress.mlflow_run_id or adopted
            self._is_ours = not adopted or known != adopted
            if known:
                self._run = MlflowRun.find(client, known)
            else:
                facts = read_document(self._folder / f"{RECORD_RUN_DOCUMENT}.json")
                self._run = MlflowRun.find_or_create(
                    client,
                    experiment=self._settings.experiment,
                    himl_run_id=str(facts.get("run_id") or self._settings.run_name),
                    record_id=self._progress.record_id,
                    run_name=self._settings.run_name,
                    start_time=float(facts.get("created") or facts.get("started") or 0.0),
                )
            self._is_uncertain = self._is_uncertain and not self._run.is_new
            parent = self._parent_run_id(fan_out) if fan_out else None
            if parent:
                self._run.log_tags({_PARENT_TAG: parent})
        return self._run

    def _parent_run_id(self, fan_out: FanOutFolder) -> str | None:
        """Returns the id that the fan-out of this trial has in the same store, or None if it has none there."""
        progress = MirrorProgress.load(fan_out.record)
        is_same_store = progress.settings.get("tracking_uri") == self._settings.masked()["tracking_uri"]
        return progress.mlflow_run_id if is_same_store else None

    def _push_documents(self, run: MlflowRun, save: Callable[[], None]) -> None:
        """Writes what the documents that have changed say, as tags."""
        changed = {name: version for name, version in self._versions() if self._progress.documents.get(name) != version}
        if changed:
            run.log_tags(document_tags(self._folder))
            if is_azureml(self._settings.tracking_uri) and f"{RECORD_CONFIG_DOCUMENT}.json" in changed:
                run.log_points(numeric_parameters(self._folder), is_uncertain=True)
            self._progress.documents.update(changed)
            save()

    @property
    def _keeps_artifacts(self) -> bool:
        """True unless the record lies beside the store, or in a job whose outputs the service collects anyway."""
        is_in_job = is_azureml(self._settings.tracking_uri) and not self._is_ours
        return database_path(self._settings.tracking_uri) is None and not is_in_job

    def _push_files(self, run: MlflowRun, save: Callable[[], None], *, tries: int) -> None:
        """Uploads the documents that have changed.

        Where files cannot be stored, metrics still can: many servers leave files to a store that needs credentials of
        its own. That is no reason to stop, but to be said at the end.
        """
        for name, version in self._versions():
            if self._progress.files.get(name) == version or self._file_tries.get(name, 0) >= tries:
                continue
            try:
                run.log_file(self._folder / name)
            except Exception as error:
                self._file_tries[name] = self._file_tries.get(name, 0) + 1
                self.missing_files[name] = diagnose(error).reason
                logger.warning("The file %s is not in MLflow: %s", name, self.missing_files[name])
            else:
                self.missing_files.pop(name, None)
                self._progress.files[name] = version
                save()

    def _versions(self) -> Iterator[tuple[str, list[int]]]:
        for name in _ARTIFACTS:
            try:
                status = (self._folder / name).stat()
            except OSError:
                continue
            yield name, [status.st_mtime_ns, status.st_size]

    def _push_values(
        self, file_name: str, key: str, send: Callable[[Mapping[str, Any]], None], save: Callable[[], None]
    ) -> None:
        lines = read_lines(self._folder / file_name, self._position(file_name))
        for line in lines:
            values = line.row.get(key) if line.row else None
            if isinstance(values, dict):
                send(values)
            self._progress.positions[file_name] = line.end
            save()

    def _push_metrics(self, run: MlflowRun, save: Callable[[], None]) -> None:
        path = self._folder / RECORD_METRICS_FILE
        while lines := read_lines(path, self._position(RECORD_METRICS_FILE), chunk_bytes=CHUNK_BYTES):
            for points, end in _batches_of_points(lines):
                try:
                    run.log_points(points, is_uncertain=self._is_uncertain)
                except Exception as error:
                    is_untouched = diagnose(error).has_not_arrived and not run.is_partly_stored
                    self._is_uncertain = self._is_uncertain or not is_untouched
                    raise
                self._is_uncertain = False
                self._progress.positions[RECORD_METRICS_FILE] = end
                save()

    def _push_status(self, run: MlflowRun, status: StatusView, save: Callable[[], None]) -> None:
        wanted = f"{status.attempt} {status.status.value}"
        if wanted == self._progress.final_status:
            return
        run.log_tags(
            {"himl.status": status.status.value, "himl.attempt": status.attempt, "himl.status_message": status.message}
        )
        # A run that somebody else has opened is closed by them.
        if self._is_ours:
            run.set_status(_MLFLOW_STATUS[status.status], end_time=status.time if status.status.is_final else None)
        self._progress.final_status = wanted
        save()

    def _position(self, file_name: str) -> int:
        return self._progress.positions.get(file_name, 0)


def document_tags(record_folder: Path) -> dict[str, str]:
    """Returns what the documents of a record say, as tags under the names that MLflow's pages show."""
    run = read_document(record_folder / f"{RECORD_RUN_DOCUMENT}.json")
    git = read_document(record_folder / f"{RECORD_GIT_DOCUMENT}.json")
    command_line = run.get("command_line")
    tags = {
        "himl.record": str(record_folder),
        "himl.model": run.get("model"),
        "himl.command_line": shlex.join(map(str, command_line)) if isinstance(command_line, list) else command_line,
        "mlflow.user": run.get("user"),
        "mlflow.source.name": "himl-runner",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "mlflow.source.git.repoURL": git.get("remote"),
        "himl.git_dirty": git.get("is_dirty"),
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def numeric_parameters(record_folder: Path) -> list[Point]:
    """Returns the numbers that somebody has chosen for this run, and its seed, as values of metrics.

    AzureML and MLflow compare parameters as texts only; runs with a rate below 0.01 are found by a metric.
    """
    run = read_document(record_folder / f"{RECORD_RUN_DOCUMENT}.json")
    config = read_document(record_folder / f"{RECORD_CONFIG_DOCUMENT}.json")
    chosen = {name: entry for name, entry in config.items() if entry.get("source") != "default"}
    # There is not room for many: what was given to this run says more than what its container always sets.
    names = sorted(chosen, key=lambda name: (str(chosen[name].get("source")).startswith("container"), name))
    values = {**(run.get("seeds") or {}), **{name: chosen[name].get("value") for name in names}}
    numbers = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    if len(numbers) > MAX_NUMERIC_PARAMETERS:
        logger.info("No metric for the parameters %s.", ", ".join(list(numbers)[MAX_NUMERIC_PARAMETERS:]))
    timestamp = int(float(run.get("created") or 0) * 1000)
    return [
        Point(clean_name(f"{PARAMETER_METRICS}/{name}"), value, timestamp, 0)
        for name, value in list(numbers.items())[:MAX_NUMERIC_PARAMETERS]
    ]


def _batches_of_points(lines: list[Line]) -> Iterator[tuple[list[Point], int]]:
    """Yields points with the position in the file behind them; a row is never split over two batches."""
    batch: list[Point] = []
    end = 0
    for line in lines:
        points = [point for row in parse_metrics([line.row] if line.row else []) for point in _points(row)]
        if batch and len(batch) + len(points) > _POINTS_PER_BATCH:
            yield batch, end
            batch = []
        batch.extend(points)
        end = line.end
    yield batch, end


def _points(row: MetricsRow) -> list[Point]:
    timestamp, step = int(row.time * 1000), _step(row)
    return [Point(clean_name(name), value, timestamp, step) for name, value in row.metrics.items()]


def _step(row: MetricsRow) -> int:
    """Returns the step, or the epoch for what is logged without a step."""
    return int(row.step if row.step is not None else row.epoch or 0)
