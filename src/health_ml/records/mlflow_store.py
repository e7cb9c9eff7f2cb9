"""The MLflow side of the mirror: opens a store without races, and writes a run within the limits of every server.

``mlflow`` takes more than a second to import: this module belongs into the process of the mirror, or into a command
that waits for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import logging
import math
import os
import posixpath
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from health_ml.environment import process_environment, working_directory
from health_ml.errors import RunNotFoundError
from health_ml.records.mlflow_limits import (
    AZUREML_LIMITS,
    MAX_NAME_LENGTH,
    MAX_PARAM_LENGTH,
    MAX_PARAMS_OR_TAGS,
    MAX_REFUSED,
    MAX_REQUEST_CHARACTERS,
    OLD_SERVER_LENGTH,
    Limits,
    is_azureml,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

RUN_ID_TAG = "himl.run_id"
RECORD_ID_TAG = "himl.record_id"
_SQLITE = "sqlite:///"
_FORBIDDEN_IN_NAME = re.compile(r"[^\w./ :-]")
_REFUSED_VALUE = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST"})

Item = TypeVar("Item")


@dataclass(frozen=True)
class Point:
    """One value of one metric.

    :param name: Name of the metric, in characters that MLflow allows.
    :param timestamp: Milliseconds since 1970-01-01 UTC.
    """

    name: str
    value: float
    timestamp: int
    step: int


def database_path(tracking_uri: str) -> Path | None:
    """Returns the file of an SQLite store, or None for any other store."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(unquote(tracking_uri[len(_SQLITE) :].partition("?")[0]))


def load_client() -> None:
    """Imports what the mirror needs, which takes some seconds."""
    names = ("mlflow", "mlflow.entities", "mlflow.store.tracking.sqlalchemy_store", "health_ml.records.fan_out_mirror")
    for name in names:
        importlib.import_module(name)


def open_client(tracking_uri: str) -> MlflowClient:
    """Returns a client of the store.

    An SQLite store that does not exist is made under a lock and appears complete or not at all: of several processes
    that start at once, one makes it and the others wait.
    """
    from mlflow import MlflowClient

    if is_azureml(tracking_uri):
        from health_ml.azure.tracking import sign_in_for_mlflow  # loads what only this store needs

        sign_in_for_mlflow(tracking_uri, process_environment())
    database = database_path(tracking_uri)
    if database is None:
        return MlflowClient(tracking_uri)
    if not database.exists():
        _create_database(database)
    # Relative to the working directory, MLflow chooses the folder for artifacts: it has to lie beside the database.
    with working_directory(database.parent):
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
    return client


def _create_database(database: Path) -> None:
    database.parent.mkdir(parents=True, exist_ok=True)
    with _passing_lock(database.with_name(f".{database.name}.lock")):
        if database.exists():
            return
        temporary = database.with_name(f".{database.name}.new")
        temporary.unlink(missing_ok=True)
        try:
            _make_tables(temporary)
            _move_without_overwriting(temporary, database)
        finally:
            temporary.unlink(missing_ok=True)


def _make_tables(database: Path) -> None:
    """Makes the tables of MLflow, with the folder for artifacts beside the database."""
    # MLflow writes the working directory into its SQL in the quotes of Python. Where SQL needs others, it works in
    # another folder, and the right one is set afterwards.
    from mlflow import MlflowClient

    folder = str(database.parent)
    is_plain = repr(folder) == f"'{folder}'"
    with TemporaryDirectory() as elsewhere, working_directory(database.parent if is_plain else Path(elsewhere)):
        MlflowClient(f"{_SQLITE}{database}").search_experiments(max_results=1)
    if not is_plain:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE experiments SET artifact_location = ?", (f"{folder}/mlruns/0",))  # the first one


def _move_without_overwriting(source: Path, target: Path) -> None:
    """Moves a file, unless the target exists: another program that knows nothing of our lock may have made it."""
    try:
        os.link(source, target)
    except FileExistsError:
        logger.info("Another program has made %s.", target)
    except OSError:  # a file system without hard links
        source.rename(target)
        return
    source.unlink()


@contextmanager
def _passing_lock(path: Path) -> Iterator[None]:
    """Holds the lock on a file that is only there while somebody holds it or waits for it.

    The system releases it when the process ends, however it ends.
    """
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it before has removed the file: a lock on a file without a name keeps nobody out.
            if not _is_file_at(path, file.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_file_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def clean_name(name: str, length: int = MAX_NAME_LENGTH) -> str:
    """Returns the name with what MLflow refuses replaced, and shortened with a hash if it is too long."""
    cleaned = posixpath.normpath(_FORBIDDEN_IN_NAME.sub("_", name).strip("/ ") or "_")
    cleaned = cleaned.replace("../", "__/") if cleaned.startswith("..") else cleaned
    cleaned = "_" if cleaned in (".", "..") else cleaned
    return shortened(cleaned, length, note="_")


def shortened(text: str, length: int, *, note: str = "… sha256 ") -> str:
    """Returns the text, cut to the length with a hash of the whole at the end if it is longer."""
    if len(text) <= length:
        return text
    note += hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
    return text[: length - len(note)] + note


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns nested parameters as flat ones (``optimizer/lr``), each value as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, (list, dict)) else str(value)
    return flat


class MlflowRun:
    """A run in an MLflow store.

    :param client: Client of the store.
    :param run_id: Id that MLflow gave to the run.
    :param is_new: True if nothing can have been written to it before.
    """

    def __init__(self, client: MlflowClient, run_id: str, *, is_new: bool = False) -> None:
        self.client = client
        self.run_id = run_id
        self.limits = AZUREML_LIMITS if is_azureml(client.tracking_uri) else Limits()
        self.is_new = is_new
        self.dropped: list[str] = []
        self.is_partly_stored = False
        """True if the last call of :meth:`log_points` has stored something, whether it came to its end or not."""
        self._params: dict[str, str] | None = None

    @classmethod
    def find(cls, client: MlflowClient, run_id: str) -> MlflowRun:
        """Returns the run that MLflow knows by this id.

        :raises RunNotFoundError: If it was deleted; MLflow raises an error of its own if it never existed.
        """
        if client.get_run(run_id).info.lifecycle_stage != "active":
            raise RunNotFoundError(
                f"the run {run_id} was deleted in MLflow.", f"Restore it with: mlflow runs restore --run-id {run_id}."
            )
        return cls(client, run_id)

    @classmethod
    def find_or_create(
        cls,
        client: MlflowClient,
        *,
        experiment: str,
        himl_run_id: str,
        record_id: str,
        run_name: str,
        start_time: float,
    ) -> MlflowRun:
        """Returns the run of a record in the experiment; both are made if they are missing.

        :param himl_run_id: Our id of the run. Two machines may give the same one to two runs.
        :param record_id: Tells the record apart from any other one.
        """
        experiment_id = _experiment_id(client, experiment)
        found = client.search_runs(
            [experiment_id], filter_string=f'tags.`{RECORD_ID_TAG}` = "{record_id}"', max_results=1
        )
        if found:
            return cls(client, found[0].info.run_id)
        tags = {RUN_ID_TAG: himl_run_id, RECORD_ID_TAG: record_id}
        start = int(start_time * 1000) or None
        run = client.create_run(experiment_id, start_time=start, tags=tags, run_name=run_name)
        return cls(client, run.info.run_id, is_new=True)

    def log_points(self, points: Sequence[Point], *, is_uncertain: bool) -> None:
        """Stores values of metrics.

        :param is_uncertain: True if some of them may be there already: then the store is asked first.
        """
        from mlflow.entities import Metric

        self.is_partly_stored = False
        known = self._known_points({point.name for point in points}) if is_uncertain else set()
        missing = [point for point in points if _fingerprint(point) not in known]
        for batch in _batches(missing, self.limits.metrics):
            metrics = [Metric(point.name, point.value, point.timestamp, point.step) for point in batch]
            self._send(metrics, self._send_metrics)

    def _send_metrics(self, metrics: list[Any]) -> None:
        self.client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        self.is_partly_stored = True

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Stores parameters. MLflow allows no changes: a changed value goes into the tag ``himl.changed.<name>``."""
        from mlflow.entities import Param

        if self._params is None:
            self._params = dict(self.client.get_run(self.run_id).data.params)
        new: dict[str, str] = {}
        changed: dict[str, str] = {}
        for name, text in flatten(values).items():
            name, text = clean_name(name), shortened(text, MAX_PARAM_LENGTH)
            before = self._params.get(name)
            if before is None:
                new[name] = text
            elif before != text and before != shortened(text, OLD_SERVER_LENGTH):
                changed[f"himl.changed.{name}"] = text
        params = [Param(name, text) for name, text in new.items()]
        for batch in _batches(params, MAX_PARAMS_OR_TAGS):
            self._send(batch, lambda items: self.client.log_batch(self.run_id, params=items, synchronous=True))
        self._params.update(new)
        self.log_tags(changed)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Stores tags; a later value replaces an earlier one."""
        from mlflow.entities import RunTag

        flat = flatten(tags)
        items = [
            RunTag(clean_name(name, self.limits.tag_name_length), shortened(text, self.limits.tag_length))
            for name, text in flat.items()
        ]
        for batch in _batches(items, MAX_PARAMS_OR_TAGS):
            self._send(batch, lambda some: self.client.log_batch(self.run_id, tags=some, synchronous=True))

    def log_file(self, path: Path) -> None:
        """Stores a file of the record as an artifact in the folder ``run``."""
        self.client.log_artifact(self.run_id, str(path), artifact_path="run")

    def set_status(self, status: str, *, end_time: float | None) -> None:
        """Sets the status of the run; with an end time the run has ended."""
        if end_time is None:
            self.client.update_run(self.run_id, status=status)
        else:
            self.client.set_terminated(self.run_id, status=status, end_time=int(end_time * 1000))

    def _send(self, items: list[Any], send: Callable[[list[Any]], object]) -> None:
        """Sends items; if the server refuses some of them, sends the others and notes which are missing.

        :raises Exception: If it refuses more than a few: then something else than the items is wrong.
        """
        refused: dict[str, Exception] = {}
        self._send_parts(items, send, refused)
        for name, error in refused.items():
            logger.warning("MLflow refused %s: %s", name, error)
        self.dropped.extend(name for name in refused if name not in self.dropped)

    def _send_parts(self, items: list[Any], send: Callable[[list[Any]], object], refused: dict[str, Exception]) -> None:
        try:
            send(items)
        except Exception as error:
            if getattr(error, "error_code", None) not in _REFUSED_VALUE or len(refused) >= MAX_REFUSED:
                raise
            if not refused:
                self.find(self.client, self.run_id)  # a run that was deleted refuses everything
            text = getattr(items[0], "value", None)
            if len(items) > 1:
                middle = len(items) // 2
                self._send_parts(items[:middle], send, refused)
                self._send_parts(items[middle:], send, refused)
            elif isinstance(text, str) and len(text) > OLD_SERVER_LENGTH:
                short = type(items[0])(items[0].key, shortened(text, OLD_SERVER_LENGTH))
                self._send_parts([short], send, refused)
            else:
                refused[items[0].key] = error

    def _known_points(self, names: set[str]) -> set[tuple[str, int, int, str]]:
        return {
            _fingerprint(Point(metric.key, metric.value, metric.timestamp, metric.step))
            for name in names
            for metric in self.client.get_metric_history(self.run_id, name)
        }


def _experiment_id(client: MlflowClient, name: str) -> str:
    """Returns the id of an experiment, which is made if it is missing, also if several processes do so at once."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise RunNotFoundError(
            f"the experiment {name!r} was deleted in MLflow.",
            f"Restore it with: mlflow experiments restore --experiment-id {experiment.experiment_id}, or choose "
            "another one with --experiment.",
        )
    return str(experiment.experiment_id)


def _fingerprint(point: Point) -> tuple[str, int, int, str]:
    """Returns what tells a point apart, with the value as MLflow stores it: infinity becomes the largest number."""
    value = point.value
    if math.isinf(value):
        value = math.copysign(1.7976931348623157e308, value)
    return point.name, point.timestamp, point.step, repr(float(value))


def _batches(items: Sequence[Item], count: int) -> Iterator[list[Item]]:
    """Yields the items in lists of at most ``count``, and of not too many characters."""
    batch: list[Item] = []
    characters = 0
    for item in items:
        size = len(str(getattr(item, "value", ""))) + MAX_NAME_LENGTH
        if batch and (len(batch) == count or characters + size > MAX_REQUEST_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(item)
        characters += size
    if batch:
        yield batch
