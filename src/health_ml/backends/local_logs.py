"""Reads the growing console logs of a local job's nodes, line by line."""

from __future__ import annotations

from collections.abc import Callable

from health_ml.backends.local_layout import LocalJobFolder

_CHUNK_BYTES = 1 << 16


class LogFollower:
    """Forwards what the logs of all nodes have gained since the last look.

    :param folder: Files of the job.
    :param num_nodes: How many logs there are. With more than one, each line starts with its node.
    """

    def __init__(self, folder: LocalJobFolder, num_nodes: int) -> None:
        self._paths = [folder.node_log(node) for node in range(num_nodes)]
        self._positions = [0] * num_nodes
        self._rests = [b""] * num_nodes

    def forward(self, write: Callable[[str], object]) -> bool:
        """Returns True if there were new lines; each is handed to ``write`` without its line end."""
        return any([self._forward_node(node, write) for node in range(len(self._paths))])

    def flush(self, write: Callable[[str], object]) -> None:
        """Hands over last lines that have no line end."""
        for node, rest in enumerate(self._rests):
            if rest:
                self._write(node, rest, write)
        self._rests = [b""] * len(self._paths)

    def _forward_node(self, node: int, write: Callable[[str], object]) -> bool:
        has_new_lines = False
        try:
            file = self._paths[node].open("rb")
        except FileNotFoundError:
            return False
        with file:
            file.seek(self._positions[node])
            while chunk := file.read(_CHUNK_BYTES):
                self._positions[node] += len(chunk)
                *lines, self._rests[node] = (self._rests[node] + chunk).split(b"\n")
                for line in lines:
                    self._write(node, line, write)
                    has_new_lines = True
        return has_new_lines

    def _write(self, node: int, line: bytes, write: Callable[[str], object]) -> None:
        text = line.decode("utf-8", errors="replace").rstrip("\r")
        write(f"[node {node}] {text}" if len(self._paths) > 1 else text)
