"""Writes scalars as TensorBoard event files, without torch and without TensorFlow.

A file that a killed process left behind is continued at a position that its owner has saved, so that no point is
written twice. The format is TensorFlow's record format with one ``Event`` message per scalar, as
``tensorboard.compat.proto.event_pb2`` describes it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path


class ScalarWriter:
    """An event file that is open for writing.

    :param folder: Folder of the event files, made if it is missing.
    :param file_name: Name of the file to continue. Default: a new file.
    :param size: Bytes of that file to keep.
    """

    def __init__(self, folder: Path, *, file_name: str = "", size: int = 0) -> None:
        # The protocol buffers take 0.1 seconds to import: only the mirror needs them.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file_name if file_name else None
        if path is None or not path.is_file() or path.stat().st_size < size or size == 0:
            path, size = folder / _new_file_name(), 0
        self.file_name = path.name
        self._file = path.open("ab")
        self._file.truncate(size)
        self._records = RecordWriter(self._file)
        if size == 0:
            self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add(self, scalars: Mapping[str, float], *, step: int, wall_time: float) -> None:
        """Writes scalars of one step, each under its own name."""
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        event = self._event(wall_time=wall_time, step=step, summary=self._summary(value=values))
        self._records.write(event.SerializeToString())

    def flush(self) -> int:
        """Returns the size of the file after everything that was added is in it."""
        self._file.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _new_file_name() -> str:
    return f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.record"
