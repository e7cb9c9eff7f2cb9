"""Keeps the content of snapshots, each file once, and unpacks them where a job runs.

    <store>/blobs/ab/cdef…       the content with SHA-256 abcdef…, read-only
    <store>/manifests/<hash>.json    the manifest with this content hash

Blobs are copies of the user's files, so that later edits do not reach what runs. Unpacked files are copies too, or
share their blocks with the blob where the file system can copy on write; they are never hard links, because a job that
may write as the owner or as root would write into the blob, and so into every other job. A copy is checked against
its hash on the way, which costs less than opening the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from health_ml.errors import OutputError, SnapshotError
from health_ml.planning.file_hashes import SnapshotFile
from health_ml.planning.snapshot import Snapshot, is_sha256, manifest_text
from health_ml.planning.tree_walk import shown_path

BLOCK_BYTES = 1 << 20
CLONE_FROM_BYTES = 1 << 16
"""Below this size a checked copy is as fast as a clone, and it is checked."""
FILES_PER_TASK = 64
MAX_THREADS = 8
LEFTOVER_SECONDS = 24 * 3600
_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset((errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM))

_ItemT = TypeVar("_ItemT")


class _DamagedError(Exception):
    """A file does not hold what its hash says."""


class SnapshotStore:
    """A store in a folder. Any number of processes may use it at once.

    :param folder: The folder; it is made when the first snapshot is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = folder / "blobs"
        self._manifests = folder / "manifests"
        self._temporary = folder / "tmp"
        self._can_clone = os.uname().sysname == "Linux"

    def store(self, snapshot: Snapshot, folder: Path) -> int:
        """Copies what the store does not hold yet, and returns the number of files copied.

        :param snapshot: The snapshot.
        :param folder: The folder that it was taken of.
        :raises SnapshotError: With every file that changed since the snapshot was taken.
        :raises OutputError: If the store cannot be written.
        """
        if self._manifest_file(snapshot.content_hash).exists():
            return 0
        try:
            return self._store(snapshot, folder)
        except OSError as error:
            raise OutputError(
                f"The snapshot cannot be stored in {self.folder}: {error.strerror}.",
                "Free some space or make the folder writable; XDG_CACHE_HOME moves it elsewhere.",
            ) from error

    def load(self, content_hash: str) -> Snapshot:
        """Returns the stored snapshot with a content hash.

        :raises SnapshotError: If the store does not hold it, or its manifest is damaged.
        """
        try:
            if not is_sha256(content_hash):
                raise FileNotFoundError(content_hash)
            snapshot = Snapshot.from_json(json.loads(self._manifest_file(content_hash).read_bytes()))
            if snapshot.content_hash != content_hash:
                raise ValueError("it is the manifest of another snapshot")
            return snapshot
        except FileNotFoundError as error:
            raise SnapshotError(
                f"The snapshot {content_hash} is not in {self.folder}.", "It was removed, or taken on another machine."
            ) from error
        except ValueError as error:
            raise SnapshotError(
                f"The manifest of the snapshot {content_hash} in {self.folder} is damaged.", "Submit the job again."
            ) from error

    def materialise(self, snapshot: Snapshot, target: Path) -> None:
        """Unpacks a stored snapshot: afterwards the folder holds its files and nothing else.

        :param snapshot: The snapshot.
        :param target: The folder. It must not exist yet, or be empty.
        :raises SnapshotError: If the store lacks a file or holds a damaged one.
        :raises OutputError: If the target has files, or cannot be written.
        """
        partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            if target.exists() and any(target.iterdir()):
                raise OutputError(f"The folder {target} is not empty.", "Unpack a snapshot into a new folder.")
            partial.mkdir(parents=True)
            self._unpack(snapshot, partial)
            partial.rename(target)
        except OSError as error:
            raise OutputError(f"The snapshot cannot be unpacked to {target}: {error.strerror}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _store(self, snapshot: Snapshot, folder: Path) -> int:
        for needed in (self._blobs, self._manifests, self._temporary):
            needed.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remove_leftovers()
        missing = list({file.sha256: file for file in snapshot.files if not self._has(file)}.values())
        for prefix in {file.sha256[:2] for file in missing}:
            (self._blobs / prefix).mkdir(exist_ok=True, mode=0o700)
        problems = _in_threads(missing, lambda file: self._add(file, folder))
        if problems:
            changed = "\n  ".join(sorted(problems))
            raise SnapshotError(
                f"These files changed while the job was submitted:\n  {changed}\n", "Submit the job again."
            )
        manifest = self._manifest_file(snapshot.content_hash)
        temporary = self._new_temporary()
        Path(temporary).write_text(manifest_text(snapshot), encoding="utf-8")
        os.replace(temporary, manifest)
        return len(missing)

    def _has(self, file: SnapshotFile) -> bool:
        try:
            return os.stat(self._blob(file.sha256)).st_size == file.size
        except FileNotFoundError:
            return False

    def _add(self, file: SnapshotFile, folder: Path) -> str | None:
        """Copies one file into the store; returns its path if it is not what the snapshot says."""
        temporary = self._new_temporary()
        try:
            _checked_copy(f"{folder}/{file.path}", temporary, file, mode=0o444)
            # Whoever stores the same content at the same time replaces it by the same.
            os.replace(temporary, self._blob(file.sha256))
        except (FileNotFoundError, NotADirectoryError, _DamagedError):
            _remove(temporary)
            return shown_path(file.path)
        except OSError:
            _remove(temporary)
            raise
        return None

    def _unpack(self, snapshot: Snapshot, target: Path) -> None:
        for folder in sorted({file.path.rpartition("/")[0] for file in snapshot.files}):
            (target / folder).mkdir(parents=True, exist_ok=True)
        problems = _in_threads(snapshot.files, lambda file: self._place(file, target))
        if problems:
            # Without its manifest the snapshot counts as not stored, and the next submission repairs it.
            self._manifest_file(snapshot.content_hash).unlink(missing_ok=True)
            raise SnapshotError(
                f"The store {self.folder} lacks {len(problems)} of {len(snapshot.files)} files or holds them damaged, "
                f"for example {sorted(problems)[0]}.",
                "Submit the job again from the folder of its code.",
            )

    def _place(self, file: SnapshotFile, target: Path) -> str | None:
        """Writes one file of the target; returns its path if the store does not hold its content."""
        blob = self._blob(file.sha256)
        destination = f"{target}/{file.path}"
        try:
            if file.size >= CLONE_FROM_BYTES and self._has(file) and self._clone(blob, destination, mode=file.mode):
                return None
            _checked_copy(blob, destination, file, mode=file.mode)
        except FileNotFoundError:
            return shown_path(file.path)
        except _DamagedError:
            _remove(blob)
            return shown_path(file.path)
        return None

    def _clone(self, blob: str, destination: str, *, mode: int) -> bool:
        """Makes a copy that shares its blocks until it is written to; returns False where that cannot be done."""
        if not self._can_clone:
            return False
        source = os.open(blob, os.O_RDONLY | os.O_CLOEXEC)
        try:
            copy = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, mode)
            try:
                fcntl.ioctl(copy, _FICLONE, source)
            finally:
                os.close(copy)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
            self._can_clone = False
        finally:
            os.close(source)
        return self._can_clone

    def _blob(self, sha256: str) -> str:
        return f"{self._blobs}/{sha256[:2]}/{sha256[2:]}"

    def _manifest_file(self, content_hash: str) -> Path:
        return self._manifests / f"{content_hash}.json"

    def _new_temporary(self) -> str:
        return f"{self._temporary}/{secrets.token_hex(16)}"

    def _remove_leftovers(self) -> None:
        """Removes what processes left behind that were killed more than a day ago."""
        for file in self._temporary.iterdir():
            try:
                if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                    file.unlink()
            except FileNotFoundError:  # another process was faster
                continue


def _in_threads(items: Sequence[_ItemT], work: Callable[[_ItemT], str | None]) -> list[str]:
    """Returns what the calls returned, without the Nones. The first error ends it and is raised."""

    def work_on(part: Sequence[_ItemT]) -> list[str]:
        return [problem for item in part if (problem := work(item)) is not None]

    parts = [items[start : start + FILES_PER_TASK] for start in range(0, len(items), FILES_PER_TASK)]
    threads = min(MAX_THREADS, len(parts), os.cpu_count() or 1)
    if threads < 2:
        return [problem for part in parts for problem in work_on(part)]
    with ThreadPoolExecutor(threads, thread_name_prefix="snapshot-store") as pool:
        return [problem for found in pool.map(work_on, parts) for problem in found]


def _checked_copy(source: str, destination: str, file: SnapshotFile, *, mode: int) -> None:
    """Copies the content of a file of a snapshot, with the given permissions.

    :raises _DamagedError: If the source holds something else; the copy is then incomplete.
    """
    digest = hashlib.sha256()
    block_bytes = min(file.size + 1, BLOCK_BYTES)  # a large block costs more than a small file
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            while block := os.read(reading, block_bytes):
                digest.update(block)
                if os.write(writing, block) != len(block):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), destination)
            if digest.hexdigest() != file.sha256:
                raise _DamagedError
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _remove(file: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)
