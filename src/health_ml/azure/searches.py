"""What the trials of a search in AzureML found: their records, as the table that a fan-out on any machine has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from health_ml.azure.downloads import newest_outputs
from health_ml.azure.history import RunFacts, RunHistory
from health_ml.azure.rest import Patience
from health_ml.azure.sweep_body import SEARCH_PROPERTY
from health_ml.azure.transfer import WORKERS, BlobDownloader, RemoteFile, writing_error
from health_ml.errors import CheckpointError, RunNotFoundError
from health_ml.planning.early_termination import Goal
from health_ml.records.fan_out_report import FanOutReport, TrialResult
from health_ml.records.reader import RecordView, read_document, read_record
from health_ml.records.record import RunStatus
from health_ml.settings import (
    FAN_OUT_PAGE,
    FAN_OUT_TABLE,
    OUTPUTS_FOLDER,
    RECORD_FOLDER,
    RECORD_METRICS_FILE,
    RECORD_RUN_DOCUMENT,
    RECORD_STATUS_FILE,
)

RECORD_PATIENCE = Patience(connect_seconds=5, read_seconds=20, attempts=4)
"""Records are small, and storage that only a private network reaches does not answer at all elsewhere."""
_NEEDED = tuple(
    f"{RECORD_FOLDER}/{name}" for name in (f"{RECORD_RUN_DOCUMENT}.json", RECORD_STATUS_FILE, RECORD_METRICS_FILE)
)
_SERVICE_PROPERTY = "primary_metric_config"
"""Where the service notes the objective: all there is if the search was submitted by another program."""
_TRIALS_TO_NAME = 10


def search_report(
    history: RunHistory, search: RunFacts, trials: Sequence[RunFacts], *, has_records: bool = True
) -> FanOutReport:
    """Returns the results of a search, as far as there are any.

    :param trials: The trials to report: the children of the search.
    :param has_records: False to read nothing from storage: then there are neither metrics nor times.
    :raises ServiceError: If the record of a trial cannot be downloaded.
    """
    about = _about(search)
    names = about.get("names") or {}
    with TemporaryDirectory(prefix="himl-") as text:
        folder = Path(text)
        if has_records:
            _download_records(history, [trial for trial in trials if trial.run_status is not RunStatus.QUEUED], folder)
        results = [_result(trial, index, names, folder) for index, trial in enumerate(trials)]
    return FanOutReport(
        search.run_id,
        results,
        primary_metric=about.get("primary_metric") or "",
        is_minimized=str(about.get("goal")).lower() != Goal.MAXIMIZE.value,
    )


def best_trial(history: RunHistory, search: RunFacts) -> RunFacts:
    """Returns the trial with the best primary metric among those that finished.

    :raises CheckpointError: If no metric ranks the trials, none has finished, or none of those has logged it.
    """
    trials = history.children(search)
    named = ", ".join(trial.run_id for trial in trials[:_TRIALS_TO_NAME])
    way_out = f"Name one of its trials: {named}." if trials else "It has no trials at all."
    metric = _about(search).get("primary_metric")
    if not metric:
        raise CheckpointError(
            f"The search '{search.run_id}' in AzureML has no best trial: no --primary_metric ranks its trials.", way_out
        )
    finished = [trial for trial in trials if trial.run_status is RunStatus.FINISHED]
    if not finished:
        counts = Counter(trial.run_status.value for trial in trials)
        standing = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "there are none yet"
        raise CheckpointError(
            f"The search '{search.run_id}' in AzureML has no best trial: none has finished ({standing}).", way_out
        )
    report = search_report(history, search, finished)
    best = report.best
    if best is None:
        logged = ", ".join(report.statistics()) or "no metric at all"
        raise CheckpointError(
            f"The search '{search.run_id}' in AzureML has no best trial: none that finished has logged {metric}, by "
            f"which it ranks them; they have logged {logged}.",
            way_out,
        )
    return next(trial for trial in finished if trial.run_id == best.run_id)


def tested_checkpoint(history: RunHistory, trial: RunFacts) -> str:
    """Returns the path in the outputs of the checkpoint that a trial has tested, "" if it has tested none."""
    with TemporaryDirectory(prefix="himl-") as text:
        _download_records(history, [trial], Path(text))
        document = read_document(Path(text) / trial.run_id / RECORD_FOLDER / f"{RECORD_RUN_DOCUMENT}.json")
    return str(document.get("checkpoint") or "")


def write_tables(history: RunHistory, run: RunFacts, pattern: str, target: Path) -> list[Path]:
    """Returns those of the two tables of a search whose names match a pattern, written below the target folder.

    :raises ServiceError: If the record of a trial cannot be downloaded.
    :raises OutputError: If they cannot be written.
    """
    wanted = [name for name in (FAN_OUT_TABLE, FAN_OUT_PAGE) if fnmatchcase(name, pattern)]
    if not run.is_sweep or not wanted:
        return []
    report = search_report(history, run, history.children(run))
    texts = {FAN_OUT_TABLE: report.to_csv, FAN_OUT_PAGE: report.to_html}
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            (target / name).write_text(texts[name](), encoding="utf-8")
    except OSError as error:
        raise writing_error(error, target) from error
    return [target / name for name in wanted]


def _about(search: RunFacts) -> Mapping[str, Any]:
    """Returns the primary metric, the goal, and the parameters that have another name in AzureML."""
    if SEARCH_PROPERTY in search.properties:
        return _json_object(search.properties[SEARCH_PROPERTY])
    objective = _json_object(search.properties.get(_SERVICE_PROPERTY))
    return {"primary_metric": objective.get("name"), "goal": objective.get("goal")}


def _download_records(history: RunHistory, trials: Sequence[RunFacts], folder: Path) -> None:
    """Downloads what the table needs of each trial, as its newest attempt has written it, to a folder of its id."""

    def files_of(trial: RunFacts) -> list[RemoteFile]:
        newest = newest_outputs(history.artifacts(trial, f"{OUTPUTS_FOLDER}/"))
        return [RemoteFile(f"{trial.run_id}/{path}", newest[path].url) for path in _NEEDED if path in newest]

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="himl-trials") as pool:
        files = [file for found in pool.map(files_of, trials) for file in found]
    with BlobDownloader(patience=RECORD_PATIENCE) as downloader:
        downloader.fetch(files, folder)


def _result(trial: RunFacts, position: int, names: Mapping[str, str], folder: Path) -> TrialResult:
    number = trial.run_id.rpartition("_")[2]
    values = _json_object(trial.tags.get("hyperparameters"))
    try:
        record: RecordView | None = read_record(folder / trial.run_id)
    except RunNotFoundError:  # it has not started, or was submitted by another program
        record = None
    return TrialResult(
        int(number) if number.isdigit() else position,
        trial.run_id,
        {names.get(name, name): value for name, value in values.items()},
        trial.run_status,
        record.last_values if record else {},
        _seconds(record) if record and trial.run_status.is_final else None,
        record.status.message if record else "",
    )


def _seconds(record: RecordView) -> float | None:
    """Returns the time from the first line of a record to its last one."""
    created = record.document(RECORD_RUN_DOCUMENT).get("created")
    return max(0.0, record.status.time - created) if isinstance(created, (int, float)) else None


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
