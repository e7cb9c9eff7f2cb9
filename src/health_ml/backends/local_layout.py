"""Where a local job keeps its files, and what its supervisor is told: one value that the submitter writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from health_ml.backends.trial_lock import take_lock
from health_ml.errors import BackendError, OutputError

CODE_FOLDER = "code"
JOB_FOLDER = "job"
JOB_FILE = "job.json"
PROCESSES_FILE = "processes.json"
CANCEL_FILE = "cancelled"
START_LOCK_FILE = "start.lock"
SUPERVISOR_LOG = "supervisor.log"
EXIT_FILE = "exit.json"


@dataclass(frozen=True)
class LocalJob:
    """A job on this machine, complete: its supervisor needs nothing else.

    :param run_id: Id of the run.
    :param command: Program and arguments of every node.
    :param project_root: Folder of the user's project, with the store of runs and of MLflow.
    :param num_nodes: How many processes run the command, each as a node of its own.
    :param max_duration_seconds: Time after which the job is stopped, or None.
    :param environment: Environment variables in addition to those of the submitting process.
    :param attempt: How often the job was resumed.
    """

    run_id: str
    command: tuple[str, ...]
    project_root: str
    num_nodes: int = 1
    max_duration_seconds: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0

    def to_json(self) -> str:
        """Returns the job as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LocalJob:
        """Returns the job that :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "command": tuple(values["command"])})


@dataclass(frozen=True)
class LocalJobFolder:
    """The files of one local job, all below its run folder."""

    run_folder: Path

    @property
    def code(self) -> Path:
        """The snapshot: the working directory of the job."""
        return self.run_folder / CODE_FOLDER

    @property
    def job(self) -> Path:
        """Folder of everything that belongs to the job and not to the training."""
        return self.run_folder / JOB_FOLDER

    @property
    def job_file(self) -> Path:
        """The :class:`LocalJob` as JSON."""
        return self.job / JOB_FILE

    @property
    def processes_file(self) -> Path:
        """Identities of the process that starts the job, then of the supervisor and of every node."""
        return self.job / PROCESSES_FILE

    @property
    def cancel_file(self) -> Path:
        """Exists once somebody has asked for the end of the job."""
        return self.job / CANCEL_FILE

    @property
    def exit_file(self) -> Path:
        """Exit codes of the nodes, written when all have ended and the record says how."""
        return self.job / EXIT_FILE

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor has to say, which is nothing as a rule."""
        return self.job / SUPERVISOR_LOG

    def node_log(self, node: int) -> Path:
        """Returns the console log of a node."""
        return self.job / f"node_{node}.log"

    def read_job(self) -> LocalJob:
        """Returns the job.

        :raises BackendError: If the folder holds no readable job.
        """
        try:
            return LocalJob.from_json(self.job_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"{self.run_folder} holds no readable job: {error}.", "Submit the experiment again."
            ) from error

    def write_job(self, job: LocalJob) -> None:
        """Writes the job. Nobody else may read it: its arguments and variables may be secrets.

        :raises OutputError: If it cannot be written.
        """
        self._write(self.job_file, job.to_json(), mode=0o600)

    def write_processes(self, processes: Mapping[str, Any]) -> None:
        """Writes who looks after the job: ``starter`` until there is a ``supervisor``, which adds its ``nodes``.

        :raises OutputError: If it cannot be written.
        """
        self._write(self.processes_file, json.dumps(processes, indent=2) + "\n")

    def write_exit(self, *, exit_codes: Sequence[int | None], message: str, is_cancelled: bool) -> None:
        """Writes that the job has ended and its record is complete.

        :raises OutputError: If it cannot be written.
        """
        content = {"exit_codes": list(exit_codes), "message": message, "is_cancelled": is_cancelled}
        self._write(self.exit_file, json.dumps(content, indent=2) + "\n")

    @contextmanager
    def starting(self) -> Iterator[int]:
        """Makes this process the only one that starts the job: two supervisors would end each other's processes.

        Yields the descriptor of a lock, which the supervisor inherits and holds until it ends.

        :raises BackendError: If the job has a supervisor, or another process is starting one.
        """
        lock = take_lock(self.job / START_LOCK_FILE)
        if lock is None:
            raise BackendError(
                f"Another command has just started run {self.run_folder.name} again.",
                f"himl-runner --attach={self.run_folder.name} follows it.",
            )
        try:
            yield lock
        finally:
            os.close(lock)

    def _write(self, path: Path, text: str, *, mode: int = 0o664) -> None:
        """Writes a file, all or nothing."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):  # the first error says more
                temporary.unlink()
            raise OutputError(f"Cannot write {path}: {error.strerror}.", "Free some space.") from error

    def read_processes(self) -> dict[str, Any]:
        """Returns the identities that the supervisor wrote, or an empty dictionary before it has."""
        try:
            content: dict[str, Any] = json.loads(self.processes_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content
