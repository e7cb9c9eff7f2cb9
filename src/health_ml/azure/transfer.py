"""Downloads many files from blob storage at once: checked, continued after an interruption, complete or not there.

A file is read in pieces. What has arrived of a large file is noted beside it, together with the version of the blob,
so that a later call asks only for the rest; a file under its final name is complete and has the time of the blob.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from health_ml.azure.blob_reader import READ_BYTES, BlobFacts, BlobReader, shown
from health_ml.azure.rest import service_error
from health_ml.errors import OutputError

WORKERS = 16

Job = Callable[[], "list[Job]"]


@dataclass(frozen=True)
class RemoteFile:
    """A blob to download.

    :param name: Where it goes below the target folder, with slashes.
    :param url: Where it is; a signature in it is a secret.
    """

    name: str
    url: str


class BlobDownloader(BlobReader):
    """Downloads blobs with several connections. Use it as a context manager."""

    shows_progress: ClassVar[bool] = True

    def fetch(self, files: Iterable[RemoteFile], target: Path) -> list[Path]:
        """Returns the paths of the files below the target folder, in their order, when all are complete.

        :raises ServiceError: If one of them cannot be downloaded; another call continues where this one stopped.
        :raises OutputError: If the disk is full or the folder cannot be written, or a name leads out of it.
        """
        items = [(file, safe_path(target, file.name)) for file in files]
        try:
            self._run([_FileDownload(self, file, path).begin for file, path in items])
        except OSError as error:
            raise writing_error(error, target) from error
        return [path for _, path in items]

    def _run(self, jobs: Sequence[Job]) -> None:
        """Does jobs in several threads, and what they leave to be done; stops all of them when one fails."""
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="himl-download") as pool:
            waiting: set[Future[list[Job]]] = {pool.submit(job) for job in jobs}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        waiting |= {pool.submit(job) for job in future.result()}
            except BaseException:
                self.stop()
                for future in waiting:
                    future.cancel()
                raise


class _FileDownload:
    """One file on its way.

    :param path: Its final name.
    """

    def __init__(self, downloader: BlobDownloader, file: RemoteFile, path: Path) -> None:
        self._downloader = downloader
        self._url = file.url
        self._path = path
        self._partial = path.with_name(f".{path.name}.part")
        self._journal = path.with_name(f".{path.name}.pieces")
        self._lock = threading.Lock()
        self._facts = BlobFacts(0, "", 0.0, None)
        self._missing: set[int] = set()

    def begin(self) -> list[Job]:
        """Downloads the file if it is small; returns the pieces that are left to be downloaded if it is large."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._is_here() or self._journal.exists():
            self._facts = self._downloader.facts(self._url)
            if self._is_here() and self._is_current():
                return self._finished()
            return self._continued(self._pieces_here())
        self._facts, content = self._downloader.read(self._url, 0)
        if len(content) == self._facts.size:
            self._partial.write_bytes(content)
            self._complete(hashlib.md5(content, usedforsecurity=False).digest())
            return self._finished()
        self._start_journal()
        self._store(0, content)
        return self._continued({0})

    def _continued(self, here: set[int]) -> list[Job]:
        count = max(1, -(-self._facts.size // self._downloader.piece_bytes))
        self._missing = set(range(count)) - here
        if not here:
            self._start_journal()
        if not self._missing:
            return self._closed()
        return [lambda index=index: self._piece(index) for index in sorted(self._missing)]  # type: ignore[misc]

    def _piece(self, index: int) -> list[Job]:
        start = index * self._downloader.piece_bytes
        _, content = self._downloader.read(self._url, start, version=self._facts.version)
        self._store(index, content)
        with self._lock:
            self._missing.remove(index)
            is_last = not self._missing
        return self._closed() if is_last else []

    def _closed(self) -> list[Job]:
        """Checks a file that came in pieces, and gives it its name."""
        self._complete(_md5_of(self._partial) if self._facts.md5 else None)
        self._journal.unlink(missing_ok=True)
        return self._finished()

    def _complete(self, md5: bytes | None) -> None:
        size = self._partial.stat().st_size
        if size != self._facts.size or (self._facts.md5 is not None and md5 != self._facts.md5):
            self._partial.unlink()
            self._journal.unlink(missing_ok=True)
            raise service_error(
                f"The download of {shown(self._url)} is damaged: its size or its checksum is wrong.",
                "Repeat the command: the file is downloaded again.",
            )
        os.utime(self._partial, (self._facts.modified, self._facts.modified))
        self._partial.replace(self._path)

    def _finished(self) -> list[Job]:
        with self._downloader.progress.lock:
            self._downloader.progress.files += 1
        return []

    def _is_here(self) -> bool:
        return self._path.is_file()

    def _is_current(self) -> bool:
        """Returns True if the file is the present version of the blob: of its size, and with its checksum or time."""
        found = self._path.stat()
        if found.st_size != self._facts.size:
            return False
        if self._facts.md5 is not None:
            return _md5_of(self._path) == self._facts.md5
        return abs(found.st_mtime - self._facts.modified) < 1

    def _start_journal(self) -> None:
        self._journal.unlink(missing_ok=True)
        with self._partial.open("wb") as file:
            file.truncate(self._facts.size)
        self._journal.write_text(f"{self._header}\n")

    @property
    def _header(self) -> str:
        return f"{self._facts.version} {self._facts.size} {self._downloader.piece_bytes}"

    def _pieces_here(self) -> set[int]:
        """Returns the pieces that an earlier call has stored, if they belong to this version of the blob."""
        try:
            header, *lines = self._journal.read_text().splitlines()
        except (OSError, ValueError):
            return set()
        if header != self._header or not self._partial.is_file():
            return set()
        return {int(line) for line in lines if line.isdigit()}

    def _store(self, index: int, content: bytes) -> None:
        """Writes a piece, and only then notes that it is there."""
        with self._partial.open("r+b") as file:
            file.seek(index * self._downloader.piece_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with self._lock, self._journal.open("a") as journal:
            journal.write(f"{index}\n")


def safe_path(folder: Path, name: str) -> Path:
    """Returns the path of a file below a folder.

    :raises OutputError: If the name leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise OutputError(f"The name {name!r} in blob storage is no path below {folder}.", "It cannot be downloaded.")
    return folder.joinpath(*parts)


def writing_error(error: OSError, folder: Path) -> OutputError:
    """Returns the error for a file that cannot be written."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"The disk of {folder} is full.", "Free some space, and repeat the command: it continues.")
    return OutputError(f"Cannot write to {folder}: {error.strerror or error}.", "Check who owns the folder.")


def _md5_of(path: Path) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.digest()
