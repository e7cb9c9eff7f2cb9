"""Reads the line files of a record from a position on, while somebody may still be writing to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from health_ml.records.encoding import decode_line

CHUNK_BYTES = 1 << 20


class Line(NamedTuple):
    """One complete line: the object on it (None if it cannot be read) and the position in the file behind it."""

    row: dict[str, Any] | None
    end: int


def read_lines(path: Path, position: int = 0, *, chunk_bytes: int | None = None) -> list[Line]:
    """Returns the complete lines from a position on; a half line at the end is left for the next time.

    :param chunk_bytes: Stop after about this many bytes. Default: read to the end.
    """
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read() if chunk_bytes is None else file.read(chunk_bytes) + file.readline()
    except FileNotFoundError:
        return []
    lines = []
    for text in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        position += len(text)
        lines.append(Line(decode_line(text), position))
    return lines


def count_lines(path: Path, position: int = 0) -> int:
    """Returns how many complete lines there are from a position on, without reading them all at once."""
    count = 0
    try:
        with path.open("rb") as file:
            file.seek(position)
            while chunk := file.read(CHUNK_BYTES):
                count += chunk.count(b"\n")
    except FileNotFoundError:
        pass
    return count


def read_rows(path: Path, *, without: Sequence[range] = ()) -> list[dict[str, Any]]:
    """Returns everything that can be read, the last line too if only its line break is missing.

    :param without: Leave out lines that start at one of these positions.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    position = 0
    for text in data.split(b"\n"):
        if text and not any(position in span for span in without) and (row := decode_line(text)) is not None:
            rows.append(row)
        position += len(text) + 1
    return rows
