"""Starts the processes of the campaign: most are forked from this one, which has loaded everything, as trials are."""

from __future__ import annotations

import gc
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from health_ml.backends.trial_server import (
    _HANDLERS,
    MODULES,
    _end,
    _forget_random_numbers,
    _redirect_output,
    obstacle_to_forking,
)
from health_ml.environment import environment_variables, working_directory
from health_ml.errors import EXIT_FAILED, EXIT_SIGNAL_BASE

_POLL_SECONDS = 0.002


def load_everything() -> None:
    """Imports what every run needs, and checks that processes can be forked afterwards.

    :raises RuntimeError: If they cannot.
    """
    for name in (*MODULES, "demanding"):
        importlib.import_module(name)
    if obstacle := obstacle_to_forking():
        raise RuntimeError(f"No processes can be forked here: {obstacle}.")
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Command:
    """A command line of ``himl-runner`` with everything around it.

    :param argv: The arguments.
    :param folder: Where it is typed.
    :param variables: Environment variables to set.
    :param log: The file that gets what it prints.
    :param is_fresh: Start a new Python instead of forking.
    :param largest_file: Limit for the size of each file in bytes, or None.
    """

    argv: Sequence[str]
    folder: Path
    variables: Mapping[str, str]
    log: Path
    is_fresh: bool = False
    largest_file: int | None = None


class Attempt:
    """A process that runs a command, in a session of its own.

    :param command: The command.
    """

    def __init__(self, command: Command) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._code: int | None = None
        self.started = time.monotonic()
        command.log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = self._start_fresh(command) if command.is_fresh else fork(lambda: _run(command))

    def _start_fresh(self, command: Command) -> int:
        with command.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "health_ml.runner", *command.argv],
                cwd=command.folder,
                env={**os.environ, **command.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._popen.pid

    def poll(self) -> int | None:
        """Returns the exit code as a shell has it, or None while the process runs."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else EXIT_SIGNAL_BASE - code
                if self._popen is not None:
                    self._popen.returncode = code
        return self._code

    def wait(self, seconds: float = 120.0) -> int | None:
        """Returns the exit code, or None if the process still runs when the time is over."""
        self.wait_until(lambda: self.poll() is not None, seconds)
        return self.poll()

    def wait_until(self, is_reached: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Returns True once a condition holds, False if the time is over or the process has ended before."""
        deadline = time.monotonic() + seconds
        while not is_reached():
            if time.monotonic() > deadline or self.poll() is not None:
                return is_reached()
            time.sleep(_POLL_SECONDS)
        return True

    def send(self, number: int) -> None:
        """Sends a signal to the process, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def session(self) -> list[int]:
        """Returns the processes of the session that still run."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return int(fields[3]) == self.pid and fields[0] != "Z"

    def end_session(self) -> None:
        """Kills everything that the process has left."""
        for pid in self.session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()


def fork(body: Callable[[], int]) -> int:
    """Returns the id of a new process that runs a function and exits with what it returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_FAILED
    try:
        code = body()
    finally:
        _end(code)


def _run(command: Command) -> int:
    """Runs a command as a new process would."""
    os.setsid()
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)
    _redirect_output(command.log)
    _forget_random_numbers()
    if command.largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (command.largest_file, resource.RLIM_INFINITY))
    sys.argv[:] = ["himl-runner", *command.argv]
    main = importlib.import_module("health_ml.runner").main
    with environment_variables(dict(command.variables)), working_directory(command.folder):
        return int(main(list(command.argv)))
