"""How far the mirror of a record has come, kept in ``mirror.json`` so that it can be continued at any time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from health_ml.planning.secrets import mask_text
from health_ml.planning.shell_words import quoted
from health_ml.records.lines import count_lines
from health_ml.records.reader import read_document
from health_ml.settings import (
    OUTPUTS_FOLDER,
    RECORD_METRICS_FILE,
    RECORD_MIRROR_DOCUMENT,
    RECORD_MIRROR_LOCK_FILE,
)


@dataclass(frozen=True)
class MirrorState:
    """What a mirror achieved.

    :param is_complete: True if everything in the record is in the mirrors.
    :param message: What to tell the user: where to look, or what is missing and how to catch up.
    :param tracking_uri: Address of the MLflow store without credentials, or ``none``.
    :param mlflow_run_id: Id that MLflow gave to the run, or None.
    """

    is_complete: bool
    message: str
    tracking_uri: str
    mlflow_run_id: str | None


@dataclass(frozen=True)
class MirrorSettings:
    """Where a record is mirrored to.

    :param tracking_uri: Address of the MLflow store, or ``none``. May contain credentials: they are never stored.
    :param experiment: Name of the experiment in MLflow.
    :param run_name: Name to display.
    :param tensorboard_folder: Folder of the TensorBoard event files, or empty for none.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    tensorboard_folder: str

    def masked(self) -> dict[str, str]:
        """Returns the settings without credentials."""
        return {**asdict(self), "tracking_uri": mask_text(self.tracking_uri)}


@dataclass
class MirrorProgress:
    """The content of ``mirror.json``.

    :param settings: Where to, without credentials.
    :param positions: For each file of the record, the position up to which MLflow has it.
    :param documents: For each document of the record, the version that MLflow knows the facts of.
    :param files: For each document of the record, the version that MLflow has as a file.
    :param record_id: Tells this record apart from all others, in any store.
    :param final_status: The final status that MLflow was told, or empty.
    :param event_file: The TensorBoard event file, how much of it is valid, and the position in the metrics file.
    :param has_answered: True if MLflow has taken something from the process that is at work, or was the last to be.
    :param trouble: Why MLflow lacks something, as the end of a sentence; empty if it lacks nothing.
    :param advice: What the user can do about that.
    """

    settings: dict[str, str] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    positions: dict[str, int] = field(default_factory=dict)
    documents: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, list[int]] = field(default_factory=dict)
    record_id: str = ""
    final_status: str = ""
    event_file: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    message: str = ""
    has_answered: bool = False
    trouble: str = ""
    advice: str = ""
    updated: float = 0.0

    @classmethod
    def load(cls, record_folder: Path) -> MirrorProgress:
        """Returns what ``mirror.json`` says; nothing has been mirrored if there is none."""
        content = read_document(record_folder / f"{RECORD_MIRROR_DOCUMENT}.json")
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def save(self, record_folder: Path) -> None:
        """Writes ``mirror.json``, all or nothing."""
        self.updated = time.time()
        path = record_folder / f"{RECORD_MIRROR_DOCUMENT}.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    def as_state(self) -> MirrorState:
        """Returns the short form for the user."""
        return MirrorState(
            is_complete=self.is_complete,
            message=self.message,
            tracking_uri=self.settings.get("tracking_uri", ""),
            mlflow_run_id=self.mlflow_run_id,
        )


def continue_on_other_disk(record_folder: Path) -> None:
    """Makes ``mirror.json`` fit the files beside it after a record was copied here while it was still growing.

    The files were copied one after the other, so the mirror may be further than they are. The TensorBoard event file
    was not copied at all: a new one is written from the beginning.
    """
    progress = MirrorProgress.load(record_folder)
    progress.positions = {
        name: min(position, _size(record_folder / name)) for name, position in progress.positions.items()
    }
    progress.event_file = {}
    progress.save(record_folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


CATCH_UP = "Catch up with:"
"""What the advice in a message about a mirror begins with."""


def lack_message(record_folder: Path, progress: MirrorProgress) -> str:
    """Returns what MLflow lacks of a record that has ended, why, and the way out."""
    missing = count_lines(record_folder / RECORD_METRICS_FILE, position=progress.positions.get(RECORD_METRICS_FILE, 0))
    rows = f"its last {missing} row{'s' * (missing != 1)} of metrics and how it ended" if missing else "how it ended"
    return " ".join(
        part
        for part in (
            f"The record in {record_folder} is complete, but MLflow at {progress.settings.get('tracking_uri')} lacks "
            f"{rows}: {progress.trouble}.",
            progress.advice,
            catch_up_hint(record_folder),
        )
        if part
    )


def catch_up_hint(record_folder: Path) -> str:
    """Returns what the user can do about a mirror that lacks something, in whatever folder that is typed."""
    run = record_folder.absolute().parent
    if run.name == OUTPUTS_FOLDER:  # in a job, whose disk goes away
        return f"{CATCH_UP} download its outputs to FOLDER, and himl-runner --sync=outputs --output_to=FOLDER"
    return f"{CATCH_UP} himl-runner --sync={quoted(run.name)} --output_to={quoted(str(run.parent))}"


@contextmanager
def mirror_lock(record_folder: Path) -> Iterator[bool]:
    """Tries to become the only mirror of a record; gives True if that worked.

    The system releases the lock when the process ends, however it ends.
    """
    with (record_folder / RECORD_MIRROR_LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
