"""SHA-256 of many files: in threads, each file read once, and remembered outside the user's tree.

A remembered hash holds as long as size, modification time, change time and inode are the same. A file that was
touched so shortly before it was read that a second change could carry the same time is hashed again next time: git's
"racy" files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import struct
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from health_ml.errors import SnapshotError
from health_ml.planning.tree_walk import FoundFile, shown_path

BLOCK_BYTES = 1 << 20
FILES_PER_TASK = 64
MAX_THREADS = 8
READ_ATTEMPTS = 3
CACHE_VERSION = 2

EXECUTABLE_MODE = 0o755
PLAIN_MODE = 0o644

FINE_CLOCK_MARGIN_NS = 20_000_000
"""File systems that keep fractions of a second stamp files with the kernel's tick, which is 10 ms at most."""
COARSE_CLOCK_MARGIN_NS = 2_000_000_000
"""File systems that keep whole seconds may keep only the even ones."""

Key = tuple[int, int, int, int]


class SnapshotFile(NamedTuple):
    """One file of a snapshot.

    :param path: Path from the snapshot's folder, with slashes.
    :param size: Size in bytes.
    :param mode: 0o755 for a file that its owner may execute, else 0o644.
    :param sha256: Hash of the content, in hexadecimal digits.
    """

    path: str
    size: int
    mode: int
    sha256: str


_Remembered = tuple[Key, str]
"""By what a file is known again, and the hash of its content."""

_FACTS = struct.Struct("<4q")
"""A key in the cache. Forty thousand large numbers take JSON longer than all the rest of it."""


def hash_files(folder: Path, files: Sequence[FoundFile], *, cache_folder: Path | None) -> list[SnapshotFile]:
    """Returns the files with their hashes, in the given order; files that are gone by now are left out.

    :param folder: The folder that the paths start from.
    :param files: The files.
    :param cache_folder: Where hashes are remembered; None remembers nothing.
    :raises SnapshotError: With every file that cannot be read or changes all the time.
    """
    cache = _HashCache(folder, cache_folder) if cache_folder is not None else None
    known = cache.load() if cache is not None else {}
    hashed: list[SnapshotFile] = []
    fresh: list[FoundFile] = []
    unknown = ((-1, 0, 0, 0), "")
    for path, facts in files:
        key, sha256 = known.get(path, unknown)
        if key == (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino):  # a call would take as long
            hashed.append(SnapshotFile(path, key[0], _mode_of(facts), sha256))
        else:
            fresh.append((path, facts))
    if not fresh and len(known) == len(hashed):
        return hashed
    remembered = {file.path: known[file.path] for file in hashed}
    for found, settled in _hash_fresh(folder, fresh):
        hashed.append(found)
        if settled is not None:
            remembered[found.path] = (settled, found.sha256)
    if cache is not None and remembered != known:
        cache.save(remembered)
    places = {path: place for place, (path, _) in enumerate(files)}
    return sorted(hashed, key=lambda file: places[file.path])


def _hash_fresh(folder: Path, files: list[FoundFile]) -> Iterable[tuple[SnapshotFile, Key | None]]:
    if not files:
        return []
    base = os.path.join(folder, "")
    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    threads = min(MAX_THREADS, len(tasks), os.cpu_count() or 1)
    problems: list[str] = []
    if threads < 2:
        parts = [_hash_some(base, task, problems) for task in tasks]
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="snapshot") as pool:
            parts = list(pool.map(lambda task: _hash_some(base, task, problems), tasks))
    if problems:
        raise SnapshotError(
            f"These files cannot be read: {' '.join(sorted(problems))}",
            "Make them readable, wait until nothing writes to them, or name them in .amlignore.",
        )
    return [entry for part in parts for entry in part]


def _hash_some(base: str, files: list[FoundFile], problems: list[str]) -> list[tuple[SnapshotFile, Key | None]]:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    found = []
    for path, _ in files:
        try:
            entry = _hash_one(base, path, buffer)
        except OSError as error:
            problems.append(f"{shown_path(path)} ({error.strerror}).")
            continue
        if entry is not None:
            found.append(entry)
    return found


def _hash_one(base: str, path: str, buffer: memoryview) -> tuple[SnapshotFile, Key | None] | None:
    """Returns a file with its hash, and by what it is known again if it can be; None if it is gone.

    :raises OSError: If it cannot be read, or if it changed each time while it was read.
    """
    for _ in range(READ_ATTEMPTS):
        started_ns = time.time_ns()
        try:
            descriptor = os.open(base + path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            before = os.fstat(descriptor)
            sha256 = hash_descriptor(descriptor, buffer, size=before.st_size)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if key_of(before) == key_of(after):
            file = SnapshotFile(path, before.st_size, _mode_of(before), sha256)
            return file, key_of(before) if _is_settled(before, started_ns) else None
    raise OSError(0, "something writes to it all the time")


def hash_descriptor(descriptor: int, buffer: memoryview, *, size: int) -> str:
    """Returns the SHA-256 of what an open file holds from its current position on, in hexadecimal digits.

    :param descriptor: The open file.
    :param buffer: Memory to read into.
    :param size: The expected number of bytes; a small file is then read by one call.
    """
    digest = hashlib.sha256()
    # A read that returns less than was asked for is the end of a regular file only if nothing was returned.
    remaining = size
    while True:
        count = os.readv(descriptor, [buffer])
        digest.update(buffer[:count])
        remaining -= count
        if count == 0 or (remaining == 0 and count < len(buffer)):
            return digest.hexdigest()


def key_of(facts: os.stat_result) -> Key:
    """Returns by what a file is known again: its size, the times of its last changes, and its inode."""
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def is_remembered(folder: Path, file: SnapshotFile, key: Key, *, cache_folder: Path) -> bool:
    """Returns True if a file of a folder is remembered with the hash that it has in a snapshot.

    :param key: By what it is known now.
    """
    return _HashCache(folder, cache_folder).load().get(file.path) == (key, file.sha256)


def _mode_of(facts: os.stat_result) -> int:
    return EXECUTABLE_MODE if facts.st_mode & 0o100 else PLAIN_MODE


def _is_settled(facts: os.stat_result, read_at_ns: int) -> bool:
    """True if a later change of the file is certain to change its times."""
    newest = max(facts.st_mtime_ns, facts.st_ctime_ns)
    has_fractions = facts.st_mtime_ns % 1_000_000_000 != 0 or facts.st_ctime_ns % 1_000_000_000 != 0
    return newest + (FINE_CLOCK_MARGIN_NS if has_fractions else COARSE_CLOCK_MARGIN_NS) < read_at_ns


class _HashCache:
    """Hashes of one tree in one JSON file. Written whole under another name and renamed, so that any number of
    processes may share it; at worst one of them has to hash again.
    """

    def __init__(self, folder: Path, cache_folder: Path) -> None:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        self._file = cache_folder / f"{name}.json"

    def load(self) -> dict[str, _Remembered]:
        """Returns what is remembered; nothing if the file is missing, damaged, or of another version."""
        try:
            content = json.loads(self._file.read_bytes())
            if content["version"] != CACHE_VERSION:
                return {}
            paths, hashes = content["paths"], content["sha256"]
            facts = _FACTS.iter_unpack(base64.b64decode(content["facts"], validate=True))
            return dict(zip(paths, zip(facts, hashes, strict=True), strict=True))
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return {}

    def save(self, entries: dict[str, _Remembered]) -> None:
        """Writes what is remembered; a cache that cannot be written costs time and nothing else."""
        facts = b"".join(_FACTS.pack(*key) for key, _ in entries.values())
        content = {
            "version": CACHE_VERSION,
            "paths": list(entries),
            "sha256": [sha256 for _, sha256 in entries.values()],
            "facts": base64.b64encode(facts).decode(),
        }
        text = json.dumps(content, separators=(",", ":"))
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}-{time.monotonic_ns()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # what should be its folder may be a file
                temporary.unlink()
            logging.getLogger(__name__).debug("The hashes of the snapshot cannot be remembered: %s", error)
