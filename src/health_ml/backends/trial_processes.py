"""Starts the processes of trials, from a server that has loaded everything or each on its own, and ends them."""

from __future__ import annotations

import json
import logging
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from health_ml.backends.trial_lock import is_held, read_owner, write_owner
from health_ml.backends.trial_server import LENGTH_BYTES
from health_ml.environment import process_environment
from health_ml.planning.fan_out_folder import FanOutFolder
from health_ml.records.process_identity import end_group_of_dead, is_running_here, process_identity, signal_group

logger = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class TrialOrder:
    """What a process needs to know to run a trial.

    :param argv: Arguments of ``himl-runner``.
    :param environment: Environment variables that differ from those of the scheduler.
    :param folder: Working directory.
    :param log: The file that gets what the trial prints.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path

    def to_json(self) -> bytes:
        """Returns the order as the server reads it."""
        values = {"argv": list(self.argv), "environment": dict(self.environment)}
        return json.dumps({**values, "folder": str(self.folder), "log": str(self.log)}).encode()


class TrialServer:
    """A process that loads what every trial needs, and then waits for orders.

    It can be started before anything else is known of the trials: loading takes seconds.

    :param model: The model of the trials, as ``--model`` names it.
    :param folder: Where the trials run, and where the model is searched.
    :param environment: Environment variables in addition to those of this process. The libraries read the number of
        threads when they are loaded, so those of all trials are the same.
    """

    def __init__(self, model: str, *, folder: Path, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.folder = folder
        self._obstacle: str | None = None
        self._answer = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "health_ml.backends.trial_server", str(theirs.fileno()), model],
                cwd=folder,
                env={**process_environment(), **environment, "PYTHONUNBUFFERED": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # a Ctrl-C is for the scheduler, which tells the trials
            )

    def serves(self, folder: Path, environment: Mapping[str, str]) -> bool:
        """True if the server was started for trials in this folder with these environment variables."""
        return (self.folder, self.environment) == (folder, dict(environment))

    def is_ready(self, wait_seconds: float) -> bool:
        """Returns True once the server has loaded everything, or has failed to."""
        if self._obstacle is not None:
            return True
        readable, _, _ = select.select([self._connection], [], [], wait_seconds)
        if readable:
            chunk = self._connection.recv(65536)
            self._answer += chunk
            if self._answer.endswith(b"\n"):
                self._obstacle = str(json.loads(self._answer)["obstacle"])
            elif not chunk:
                self._obstacle = f"the server of the trials ended: {self._last_words()}"
        return self._obstacle is not None

    @property
    def obstacle(self) -> str:
        """Why the server cannot start trials, or an empty text. Known once it is ready."""
        return self._obstacle or ""

    def start(self, order: TrialOrder, lock: int) -> bool:
        """Hands an order and the lock of the trial over; returns False if the server has ended."""
        data = order.to_json()
        try:
            socket.send_fds(self._connection, [len(data).to_bytes(LENGTH_BYTES, "big")], [lock])
            self._connection.sendall(data)
        except OSError:
            self._obstacle = f"the server of the trials ended: {self._last_words()}"
            return False
        return True

    def close(self) -> None:
        """Ends the server. Trials that it has started go on."""
        self._connection.close()
        if self._obstacle is None:
            self._process.terminate()  # it would load everything first
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.poll()}"


class TrialProcess:
    """The process of a trial, whoever started it.

    :param lock_file: The file that it locks as long as it lives.
    :param process: The process if this one has started it directly, which then has to wait for its end.
    """

    def __init__(self, lock_file: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self._lock_file = lock_file
        self._process = process

    def is_alive(self) -> bool:
        """True until the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            return False
        return is_held(self._lock_file)

    def send_signal(self, number: int) -> bool:
        """Signals the process and what it started; returns False if it is too young to be found.

        A process on another machine is left alone: its number means another process here.
        """
        owner = read_owner(self._lock_file)
        process_id = owner.get("pid")
        if not isinstance(process_id, int):
            return False
        if is_running_here(owner):
            signal_group(process_id, number)
        return True

    def end_children(self) -> None:
        """Ends what a process that has ended has left running, for example the other ranks of its training."""
        end_group_of_dead(read_owner(self._lock_file))


def start_fresh(order: TrialOrder, lock: int, lock_file: Path) -> TrialProcess:
    """Returns the process of a trial that loads everything by itself.

    :raises OSError: If it cannot be started.
    """
    with order.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "health_ml.runner", *order.argv],
            cwd=order.folder,
            env={**process_environment(), **order.environment, "PYTHONUNBUFFERED": "1"},
            pass_fds=[lock],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    write_owner(lock, process_identity(process.pid))
    return TrialProcess(lock_file, process)


def living_trials(folder: FanOutFolder) -> list[TrialProcess]:
    """Returns the processes of a fan-out's trials that live, whoever started them."""
    processes = [TrialProcess(folder.trial_lock(index)) for index in folder.trial_indices()]
    return [process for process in processes if process.is_alive()]


def end_trials(folder: FanOutFolder, grace_seconds: float) -> int:
    """Ends the processes of all trials: each may save a checkpoint first. Returns how many there were."""
    alive = living_trials(folder)
    deadline = time.monotonic() + grace_seconds
    for process in alive:
        process.send_signal(signal.SIGINT)
    while living_trials(folder) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    kill_trials(folder)
    return len(alive)


def kill_trials(folder: FanOutFolder) -> None:
    """Ends the processes of all trials at once, those too that are so young that nobody knows their number yet."""
    deadline = time.monotonic() + _STOP_SECONDS
    while (alive := living_trials(folder)) and time.monotonic() < deadline:
        for process in alive:
            process.send_signal(signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
