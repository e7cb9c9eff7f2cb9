"""Writes the record of a run: plain files that are complete up to the last line, whatever happens to the process.

Every line is handed to the operating system in one unbuffered write, so a killed process loses nothing. A line that
a full disk or a power cut has torn is skipped by the reader, and the next line starts on a line of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from health_ml.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, OutputError
from health_ml.planning.secrets import mask_program_text, mask_text
from health_ml.records.encoding import encode_line, encode_number, encode_value
from health_ml.records.process_identity import process_identity
from health_ml.settings import (
    RECORD_ATTEMPTS_FILE,
    RECORD_HYPERPARAMETERS_FILE,
    RECORD_METRICS_FILE,
    RECORD_PACKAGES_DOCUMENT,
    RECORD_RUN_DOCUMENT,
    RECORD_STATUS_FILE,
    RECORD_TAGS_FILE,
)

# Nobody outside the group may write, even if the umask allows it.
_FILE_MODE = 0o664
_FOLDER_MODE = 0o775
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT

# The names of packages (keyring, secretstorage) look like names of secrets.
_DOCUMENTS_WITHOUT_SECRETS = frozenset({RECORD_PACKAGES_DOCUMENT})


class RunStatus(str, Enum):
    """How a run stands or ended."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"
    PREEMPTED = "PREEMPTED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """True if the process that wrote this status does nothing more."""
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)

    @property
    def exit_code(self) -> int:
        """Exit code of a process whose run ended so: 0 only if everything that was asked for was done."""
        codes = {
            RunStatus.FINISHED: 0,
            RunStatus.PREEMPTED: EXIT_SIGNAL_BASE + signal.SIGTERM,
            RunStatus.CANCELLED: EXIT_SIGNAL_BASE + signal.SIGINT,
        }
        return codes.get(self, EXIT_FAILED)


class RunRecord:
    """The record of one run. Make it with :meth:`create`; the files stay open until :meth:`close`.

    :param folder: Folder of the record, ``run/`` in the run folder. It has to exist.
    :param run_id: Id of the run.
    :param attempt: How often the run was restarted. Every attempt appends to the same files.
    """

    def __init__(self, folder: Path, *, run_id: str, attempt: int = 0) -> None:
        self.folder = folder
        self.run_id = run_id
        self.attempt = attempt
        self._descriptors: dict[str, int] = {}
        self._torn: set[str] = set()
        self._prefix = os.path.join(folder, "")
        self._names: dict[str, str] = {}
        self._first_position = self.metrics_position

    @classmethod
    def create(cls, folder: Path, *, run_id: str, attempt: int = 0, status: RunStatus = RunStatus.RUNNING) -> RunRecord:
        """Returns the record in a folder, which is made if it is missing, with a status.

        A record that is already there is continued.

        :raises OutputError: If the folder cannot be made or written.
        """
        folder = folder.absolute()
        try:
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        record = cls(folder, run_id=run_id, attempt=attempt)
        if not (folder / f"{RECORD_RUN_DOCUMENT}.json").exists():
            record.write_document(RECORD_RUN_DOCUMENT, {"run_id": run_id, "created": time.time()})
        record.set_status(status)
        return record

    def write_document(self, name: str, content: Any, *, has_secrets: bool = True) -> Path:
        """Returns the path of ``<name>.json`` after writing the content to it, all or nothing.

        Values that JSON lacks are stored as text, and secrets are masked.

        :param has_secrets: False if they are masked already.
        :raises OutputError: If the file cannot be written.
        """
        plain = encode_value(content, is_masked=has_secrets and name not in _DOCUMENTS_WITHOUT_SECRETS)
        return self._write_file(f"{name}.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")

    def write_text(self, file_name: str, text: str) -> Path:
        """Returns the path of a text file after writing a program's text to it, all or nothing, with secrets masked.

        :raises OutputError: If the file cannot be written.
        """
        return self._write_file(file_name, mask_program_text(text))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None, epoch: int | None = None) -> None:
        """Appends a row of metrics.

        :raises OutputError: If the row cannot be written completely, for example because the disk is full.
        """
        # This runs in every training step: put together by hand, a line takes a third of the time of a JSON encoder.
        names = self._names
        values = []
        for name, value in metrics.items():
            key = names.get(name) or self._encode_name(name)
            if value.__class__ is float and value - value == 0.0:  # neither infinite nor nan
                values.append(f"{key}{value!r}")
            else:
                values.append(f"{key}{encode_line(encode_number(float(value)))}")
        self._append(
            RECORD_METRICS_FILE,
            f'{{"time":{time.time()!r},"step":{_number_or_null(step)},"epoch":{_number_or_null(epoch)},'
            f'"attempt":{self.attempt},"metrics":{{{",".join(values)}}}}}',
        )

    @property
    def metrics_position(self) -> int:
        """The size of the file of metrics: what a checkpoint that is written now includes."""
        try:
            return (self.folder / RECORD_METRICS_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def start_training(
        self, position: int, *, checkpoint: str | Path | None = None, epoch: int | None = None, step: int | None = None
    ) -> None:
        """Appends where the training starts. Metrics of earlier attempts beyond that do not count any more.

        :param position: How much of the file of metrics the checkpoint includes that the training continues from.
        :param checkpoint: That checkpoint, None: the training starts from the beginning.
        :param epoch: Epoch of the checkpoint.
        :param step: Optimizer step of the checkpoint.
        :raises OutputError: If it cannot be written.
        """
        run_folder = self.folder.parent
        if checkpoint is not None and Path(checkpoint).is_relative_to(run_folder):
            checkpoint = Path(checkpoint).relative_to(run_folder)  # the folder may be moved later
        row = {
            "time": time.time(),
            "attempt": self.attempt,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "epoch": epoch,
            "step": step,
            "replaced": [min(position, self._first_position), self._first_position],
        }
        self.append_row(RECORD_ATTEMPTS_FILE, row)

    def log_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Appends hyperparameters of any type. A later value for the same name replaces the earlier one.

        :raises OutputError: If they cannot be written.
        """
        self._append_values(RECORD_HYPERPARAMETERS_FILE, "values", values)

    def log_tags(self, tags: Mapping[str, Any]) -> None:
        """Appends tags: short facts about the run to search for.

        :raises OutputError: If they cannot be written.
        """
        self._append_values(RECORD_TAGS_FILE, "tags", tags)

    def set_status(self, status: RunStatus, message: str = "") -> None:
        """Appends how the run stands, and which process says so.

        :raises OutputError: If it cannot be written.
        """
        row = {
            "time": time.time(),
            "status": RunStatus(status).value,
            "message": mask_text(message),
            "run_id": self.run_id,
            "attempt": self.attempt,
            **process_identity(),
        }
        self._append(RECORD_STATUS_FILE, encode_line(row))

    def append_row(self, file_name: str, row: Mapping[str, Any]) -> None:
        """Appends a line to a file of the record that this class does not know; the values have to be those of JSON.

        :raises OutputError: If it cannot be written.
        """
        self._append(file_name, encode_line(dict(row)))

    def close(self) -> None:
        """Closes the files. What was logged is in them already."""
        descriptors, self._descriptors = self._descriptors, {}
        for descriptor in descriptors.values():
            os.close(descriptor)

    def _encode_name(self, name: str) -> str:
        """Returns the name of a metric as the key of a JSON object, and remembers it."""
        key = self._names[name] = f"{encode_line(str(name))}:"
        return key

    def _append_values(self, file_name: str, key: str, values: Mapping[str, Any]) -> None:
        row = {"time": time.time(), "attempt": self.attempt, key: encode_value(dict(values))}
        self._append(file_name, encode_line(row))

    def _append(self, file_name: str, line: str) -> None:
        """Writes one line with one system call; a second one is only needed if the disk is about to be full."""
        data = line.encode("ascii") + b"\n"
        try:
            descriptor = self._descriptors.get(file_name)
            if descriptor is None:
                descriptor = self._descriptors[file_name] = self._open(file_name)
            elif file_name != RECORD_STATUS_FILE:  # which is to follow the folder wherever it goes
                os.stat(self._prefix + file_name)  # an open file takes everything, also when nobody finds it any more
            if file_name in self._torn:
                data = b"\n" + data
            while (written := os.write(descriptor, data)) < len(data):
                self._torn.add(file_name)
                data = data[written:]
        except OSError as error:
            raise _cannot_write(self.folder / file_name, error) from error
        self._torn.discard(file_name)

    def _open(self, file_name: str) -> int:
        path = self.folder / file_name
        if _ends_in_half_a_line(path):
            self._torn.add(file_name)
        return os.open(path, _APPEND, _FILE_MODE)

    def _write_file(self, file_name: str, text: str) -> Path:
        path = self.folder / file_name
        temporary = path.with_name(f".{file_name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error says more
                temporary.unlink()
            raise _cannot_write(path, error) from error
        return path


def _number_or_null(number: int | None) -> str:
    return "null" if number is None else str(int(number))


def _ends_in_half_a_line(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def _cannot_write(path: Path, error: OSError) -> OutputError:
    if isinstance(error, FileNotFoundError):
        return moved_error(path)
    return OutputError(
        f"Cannot write {path}: {error.strerror or error}.",
        "Free some space, check the permissions, or choose another folder.",
    )


def moved_error(path: Path) -> OutputError:
    """Returns what to say of a file of a run that should be there and is not."""
    return OutputError(
        f"{path} is gone: the folder of the run was moved or deleted while the run was going on.",
        "Leave it where it is until the run has ended. What was written until then went with it.",
    )
