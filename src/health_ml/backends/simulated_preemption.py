"""Runs an experiment in a process that is interrupted, and continues it in another one, as after a preemption."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from health_ml.backends.run_facts import current_attempt
from health_ml.environment import Place, RunEnvironment, process_environment
from health_ml.errors import EXIT_FAILED, EXIT_SIGNAL_BASE, BackendError
from health_ml.planning.preemption import NOT_INTERRUPTED, SimulatedPreemption, parse_preemption
from health_ml.records.process_identity import signal_group
from health_ml.records.reader import read_document, read_record
from health_ml.settings import (
    CONSOLE_LOGS_FOLDER,
    ENV_ATTEMPT,
    ENV_PARENT,
    ENV_PROJECT_ROOT,
    ENV_RUN_FOLDER,
    ENV_RUN_ID,
    ENV_SIMULATED_PREEMPTION,
    ENV_START_DIRECTORY,
    RECORD_FOLDER,
    RECORD_PREEMPTION_DOCUMENT,
)
from health_ml.training.signals import HANDLED_SIGNALS, is_left_to_others

Write = Callable[[str], object]


@dataclass
class InterruptedRun:
    """A run in two processes, the first of which is interrupted.

    :param run_folder: Folder of the run.
    :param text: What the user asked for.
    :param argv: The command line.
    :param place: Where it was typed.
    :param environment: Where this process runs.
    :param write: Prints a line.
    """

    run_folder: Path
    text: str
    argv: Sequence[str]
    place: Place
    environment: RunEnvironment
    write: Write
    _process: subprocess.Popen[str] | None = field(default=None, init=False)
    _stopped_by: int | None = field(default=None, init=False)

    @property
    def preemption(self) -> SimulatedPreemption:
        """Moment and signal."""
        return parse_preemption(self.text)

    def run(self) -> int:
        """Returns the exit code of the command: 0 if the run was interrupted, continued, and has finished.

        :raises BackendError: If it was not interrupted, or could not be continued.
        """
        first = current_attempt(self.run_folder / RECORD_FOLDER, self.environment)
        if first > 0:  # a real interruption came in between
            return self._attempt(first, NOT_INTERRUPTED)
        self.write(f"Attempt 0 of the run will be interrupted by {self._signal_name} {self.preemption.moment}.")
        code = self._attempt(0, self.text)
        if self._is_stopped():
            return code
        interruption = self._check_interruption(code)
        self.write(f"\nAttempt 0 has ended with exit code {code}. Attempt 1 starts in a new process.")
        code = self._attempt(1, NOT_INTERRUPTED)
        if self._is_stopped():
            return code
        if code != 0:
            raise BackendError(
                f"--simulate_preemption: attempt 1 could not finish the run after the interruption (exit code {code}).",
                f"See {self._log(1)}.",
                code,
            )
        self.write(self._report(interruption))
        return 0

    @property
    def _signal_name(self) -> str:
        return self.preemption.signal.name

    def _is_stopped(self) -> bool:
        """True if somebody has asked for the end of the run meanwhile."""
        return self._stopped_by is not None

    def _attempt(self, attempt: int, interruption: str) -> int:
        """Returns the exit code of one process of the run, as a shell has it."""
        log = self._log(attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file, self._forwarding():
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "health_ml.runner", *self.argv],
                cwd=self.place.start_directory,
                env=self._variables(attempt, interruption),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a Ctrl-C arrives once, from this process
            )
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    self.write(line.rstrip("\n"))
                code = process.wait()
            finally:
                signal_group(process.pid, signal.SIGKILL)  # with the machine, everything on it is gone
                process.wait()
        return code if code >= 0 else EXIT_SIGNAL_BASE - code

    def _variables(self, attempt: int, interruption: str) -> dict[str, str]:
        return {
            **process_environment(),
            ENV_RUN_FOLDER: str(self.run_folder),
            ENV_RUN_ID: self.environment.run_id or self.run_folder.name,
            ENV_START_DIRECTORY: str(self.place.start_directory),
            ENV_PROJECT_ROOT: str(self.place.project_root),
            ENV_ATTEMPT: str(attempt),
            ENV_PARENT: str(os.getpid()),
            ENV_SIMULATED_PREEMPTION: interruption,
            "PYTHONUNBUFFERED": "1",
        }

    def _log(self, attempt: int) -> Path:
        return self.run_folder / CONSOLE_LOGS_FOLDER / f"attempt_{attempt}.log"

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Hands the signals that ask for the end of the run on to its process."""
        mine = [number for number in HANDLED_SIGNALS if not is_left_to_others(number)]
        before = {number: signal.signal(number, self._forward) for number in mine}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._stopped_by = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _check_interruption(self, code: int) -> dict[str, Any]:
        """Returns where the first process was interrupted.

        :raises BackendError: If it ended in another way.
        """
        found = read_document(self.run_folder / RECORD_FOLDER / f"{RECORD_PREEMPTION_DOCUMENT}.json")
        if code == 0 and not found:
            raise BackendError(
                f"--simulate_preemption={self.text}: the run finished before it could be interrupted "
                f"{self.preemption.moment}, so nothing was tested.",
                "Choose an earlier moment.",
                EXIT_FAILED,
            )
        if not found or code != EXIT_SIGNAL_BASE + self.preemption.signal:
            raise BackendError(
                f"--simulate_preemption={self.text}: attempt 0 ended by itself with exit code {code}, so nothing was "
                "tested.",
                f"See {self._log(0)}.",
                code or EXIT_FAILED,
            )
        return found

    def _report(self, interruption: dict[str, Any]) -> str:
        start = next((row for row in read_record(self.run_folder).attempts if row.get("attempt") == 1), {})
        place = f"in epoch {interruption['epoch']}, at optimizer step {interruption['step']}"
        if start.get("checkpoint") is None:
            continued = "started from the beginning, because there was no checkpoint yet"
            shown = "that the model starts again in the same folder. Continuing from a checkpoint was not tested"
        else:
            continued = f"continued from {start['checkpoint']} (optimizer step {start['step']})"
            shown = "that the model can be saved and continued in a new process"
        return (
            f"\nPreemption was simulated: {interruption['signal']} ended attempt 0 {place}. Attempt 1 {continued} and "
            f"finished.\nThis shows {shown}. Not tested: whether the results are those of a run without interruption, "
            "other moments, and the loss of the disk.\n"
            f"  console logs  {shlex.quote(str(self._log(0).parent))}"
        )
