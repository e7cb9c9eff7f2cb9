"""Starts the other processes of a distributed training on this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from health_ml.environment import process_environment, set_environment_variables
from health_ml.errors import EXIT_FAILED
from health_ml.settings import ENV_PARENT

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_END_SECONDS = 30.0
_END_SECONDS_AFTER_FAILURE = 5.0
_DEATH_SECONDS = 3.0
_SIGNS_OF_A_LOST_CONNECTION = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class RankFailure(NamedTuple):
    """A process of a distributed training that has failed.

    :param local_rank: Its rank on this machine.
    :param exit_code: Its exit code, negative if a signal has ended it.
    """

    local_rank: int
    exit_code: int

    def __str__(self) -> str:
        if self.exit_code < 0:
            return f"The process with local rank {self.local_rank} was ended by {_signal_name(-self.exit_code)}."
        return (
            f"The process with local rank {self.local_rank} failed with exit code {self.exit_code}; see its output "
            "above."
        )


def is_lost_connection(error: BaseException) -> bool:
    """Returns True if a process complains that it cannot reach another one, which is a consequence and no cause."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_A_LOST_CONNECTION)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class RankLauncher(_SubprocessScriptLauncher):
    """Starts every other rank with the same command line, in the folder where the user typed it.

    Lightning would start them in the current folder, which is the outputs folder by then, with whatever
    ``sys.argv`` holds.

    :param like: The launcher of Lightning to take the place of.
    :param command: The command line.
    :param folder: Where to start it.
    :param on_rank_failed: Called with a process that failed, before this one is ended.
    """

    def __init__(
        self,
        like: _SubprocessScriptLauncher,
        *,
        command: Sequence[str],
        folder: Path,
        on_rank_failed: Callable[[RankFailure], None],
    ) -> None:
        super().__init__(like.cluster_environment, like.num_processes, like.num_nodes)
        self._command = list(command)
        self._folder = folder
        self._on_rank_failed = on_rank_failed
        self._is_ending = threading.Event()

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Starts the other ranks unless somebody else did, and calls the function."""
        from lightning_fabric.utilities.distributed import _set_num_threads_if_needed

        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._start_ranks()
            threading.Thread(target=self._watch, name="himl-rank-observer", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def end(self, *, is_failed: bool) -> None:
        """Waits for the other ranks to end, and kills those that do not.

        :param is_failed: True if this rank failed, so that the others wait for it in vain.
        """
        self._is_ending.set()
        deadline = time.monotonic() + (_END_SECONDS_AFTER_FAILURE if is_failed else _END_SECONDS)
        for process in self.procs:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def failed_rank(self) -> RankFailure | None:
        """Returns the process that has failed first, waiting a little for one that is just ending; None if none has."""
        deadline = time.monotonic() + _DEATH_SECONDS
        while time.monotonic() < deadline:
            for index, process in enumerate(self.procs):
                if code := process.poll():
                    return RankFailure(index + 1, code)
            time.sleep(0.05)
        return None

    def _start_ranks(self) -> None:
        self._check_can_spawn_children()
        set_environment_variables(
            {
                "MASTER_ADDR": self.cluster_environment.main_address,
                "MASTER_PORT": str(self.cluster_environment.main_port),
                "NODE_RANK": str(self.cluster_environment.node_rank()),
                "LOCAL_RANK": str(self.cluster_environment.local_rank()),
                "WORLD_SIZE": str(self.num_processes * self.num_nodes),
            }
        )
        for local_rank in range(1, self.num_processes):
            environment = {**process_environment(), "LOCAL_RANK": str(local_rank), ENV_PARENT: str(os.getpid())}
            self.procs.append(subprocess.Popen(self._command, env=environment, cwd=self._folder))

    def _watch(self) -> None:
        """Ends this process when another rank has failed: it would wait for that one for ever."""
        while not self._is_ending.wait(_POLL_SECONDS):
            codes = [process.poll() for process in self.procs]
            for index, code in enumerate(codes):
                if code:
                    self._fail(RankFailure(index + 1, code))
            if all(code == 0 for code in codes):
                return

    def _fail(self, failure: RankFailure) -> None:
        # A rank that fails in a collective takes the others down with it: give this one the chance to say so itself.
        if self._is_ending.wait(5 * _POLL_SECONDS):
            return
        try:
            self._on_rank_failed(failure)
        finally:
            for process in self.procs:
                process.send_signal(signal.SIGKILL)
            os._exit(EXIT_FAILED)


def runner_command(argv: Sequence[str]) -> list[str]:
    """Returns the command line that starts another process of the same run."""
    return [sys.executable, "-m", "health_ml.runner", *argv]


def use_rank_launcher(
    trainer: Trainer, *, argv: Sequence[str], folder: Path, on_rank_failed: Callable[[RankFailure], None]
) -> RankLauncher | None:
    """Replaces Lightning's launcher in a Trainer that starts other processes, and returns the new one."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return None
    replacement = RankLauncher(launcher, command=runner_command(argv), folder=folder, on_rank_failed=on_rank_failed)
    trainer.strategy._launcher = replacement
    return replacement
