"""Reads the growing console logs of a local job's nodes and trials, line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from health_ml.backends.local_layout import LocalJobFolder
from health_ml.planning.fan_out_folder import FanOutFolder

_CHUNK_BYTES = 1 << 16


class _Log:
    """One log: what has been read of it.

    :param prefix: Start of each of its lines.
    """

    def __init__(self, path: Path, prefix: str) -> None:
        self.path = path
        self.prefix = prefix
        self.position = 0
        self.rest = b""


class LogFollower:
    """Forwards what the logs of all nodes and trials have gained since the last look.

    :param folder: Files of the job.
    :param num_nodes: How many nodes there are. With more than one, each line starts with its node; those of a trial
        start with its number.
    """

    def __init__(self, folder: LocalJobFolder, num_nodes: int) -> None:
        self._fan_out = FanOutFolder(folder.run_folder)
        self._logs = [
            _Log(folder.node_log(node), f"[node {node}] " if num_nodes > 1 else "") for node in range(num_nodes)
        ]
        self._trials: dict[int, _Log] = {}

    def forward(self, write: Callable[[str], object]) -> bool:
        """Returns True if there were new lines; each is handed to ``write`` without its line end."""
        for index in self._fan_out.trial_indices():
            if index not in self._trials:
                self._trials[index] = _Log(self._fan_out.trial_log(index), f"[trial {index}] ")
        return any([_forward(log, write) for log in self._all()])

    def flush(self, write: Callable[[str], object]) -> None:
        """Hands over last lines that have no line end."""
        for log in self._all():
            if log.rest:
                _write(log, log.rest, write)
            log.rest = b""

    def _all(self) -> list[_Log]:
        return [*self._trials.values(), *self._logs]


def _forward(log: _Log, write: Callable[[str], object]) -> bool:
    has_new_lines = False
    try:
        file = log.path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        file.seek(log.position)
        while chunk := file.read(_CHUNK_BYTES):
            log.position += len(chunk)
            *lines, log.rest = (log.rest + chunk).split(b"\n")
            for line in lines:
                _write(log, line, write)
                has_new_lines = True
    return has_new_lines


def _write(log: _Log, line: bytes, write: Callable[[str], object]) -> None:
    text = line.decode("utf-8", errors="replace").rstrip("\r")
    write(f"{log.prefix}{text}")
