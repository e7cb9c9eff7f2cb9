"""Standard output and standard error that a program outlives: a closed pipe or terminal ends nothing."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""What the system says of a pipe whose reader has ended, and of a terminal that was closed."""


class LastingFile(io.FileIO):
    """An open file that takes what nobody reads any more: from then on, everything goes to nowhere."""

    def write(self, data: Any, /) -> int:
        """Returns how many bytes were written or are lost.

        :raises OSError: If the file cannot be written for another reason, for example because the disk is full.
        """
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return memoryview(data).nbytes


def use_lasting_streams() -> None:
    """Lets the streams of this process outlive their readers, and write whatever a name of a file may hold."""
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed before the program was started
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    file = LastingFile(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        file if stream.write_through else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
