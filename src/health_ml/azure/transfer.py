"""Downloads many files from blob storage at once: checked, continued after an interruption, complete or not there.

A file is read in pieces. What has arrived of a large file is noted beside it, together with the version of the blob,
so that a later call asks only for the rest; a file under its final name is complete and has the time of the blob.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from health_ml.azure.rest import (
    CONNECTIONS,
    Patience,
    ServiceError,
    is_temporary,
    new_session,
    reason_of,
    retry_after,
    service_error,
)
from health_ml.errors import OutputError

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""Files up to this size come with one request; of larger ones, several pieces are on their way at once."""
WORKERS = 16
_BLOB_API = "2021-08-06"
_READ_BYTES = 1 << 20
_REPORT_SECONDS = 10.0

Job = Callable[[], "list[Job]"]


class Access:
    """How requests for blobs are allowed. This is for addresses that contain a signature already."""

    def signed(self, url: str) -> tuple[str, Mapping[str, str]]:
        """Returns the address to ask, and headers for the request."""
        return url, {}

    def renew(self) -> bool:
        """Returns True if access that was refused may be granted now."""
        return False


@dataclass(frozen=True)
class RemoteFile:
    """A blob to download.

    :param name: Where it goes below the target folder, with slashes.
    :param url: Where it is; a signature in it is a secret.
    """

    name: str
    url: str


@dataclass(frozen=True)
class BlobFacts:
    """What the server says about a blob.

    :param size: In bytes.
    :param version: Its ETag, another one for each content.
    :param modified: When it was written, in seconds since 1970-01-01 UTC.
    :param md5: The MD5 sum of its content, or None if nobody has computed it.
    """

    size: int
    version: str
    modified: float
    md5: bytes | None


@dataclass
class _Progress:
    """How much has been received by all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    received: int = 0
    files: int = 0
    last_report: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        with self.lock:
            self.received += count
            now = time.monotonic()
            if now - self.last_report >= _REPORT_SECONDS:
                self.last_report = now
                logger.info("Downloaded %d files and %.1f MB so far.", self.files, self.received / 1e6)


class StoppedError(Exception):
    """Another file could not be downloaded, so this one is not needed any more."""


class BlobDownloader:
    """Downloads blobs with several connections. Use it as a context manager.

    :param access: How requests are allowed.
    :param patience: How often to try, and how long.
    :param piece_bytes: Size of a piece of a large file.
    """

    def __init__(
        self, access: Access | None = None, *, patience: Patience | None = None, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.patience = patience or Patience()
        self.piece_bytes = piece_bytes
        self.progress = _Progress()
        self._access = access or Access()
        self._session = new_session(max(WORKERS, CONNECTIONS))
        self._is_stopped = threading.Event()

    def __enter__(self) -> BlobDownloader:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

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
                self._is_stopped.set()
                for future in waiting:
                    future.cancel()
                raise

    def facts(self, url: str) -> BlobFacts:
        """Returns what the server says about a blob."""
        with self._request("HEAD", url, {}) as answer:
            return _facts_of(answer)

    def read(self, url: str, start: int, *, version: str = "") -> tuple[BlobFacts, bytes]:
        """Returns a piece of a blob.

        :param version: The version that the piece has to belong to.
        :raises ServiceError: If the blob has another version now, or cannot be read.
        """
        wanted = {"Range": f"bytes={start}-{start + self.piece_bytes - 1}"}
        if version:
            wanted["If-Match"] = version
        problem = ""
        for attempt in range(self.patience.attempts):
            if attempt:
                self._pause(attempt, 0.0)
            with self._request("GET", url, wanted) as answer:
                facts = _facts_of(answer)
                if answer.status_code == 416:  # an empty file has no first byte
                    return facts, b""
                expected = max(0, min(self.piece_bytes, facts.size - start))
                content, problem = self._body(answer, expected)
            if content is not None:
                return facts, content
        raise service_error(f"The download of {shown(url)} broke {self.patience.attempts} times: {problem}.")

    def _body(self, answer: requests.Response, expected: int) -> tuple[bytes | None, str]:
        """Returns the body of an answer, or None and what is wrong with it."""
        import requests
        from urllib3.exceptions import HTTPError

        parts: list[bytes] = []
        try:
            for part in answer.iter_content(_READ_BYTES):
                self.check_stopped()
                parts.append(part)
                self.progress.add(len(part))
        except (requests.RequestException, HTTPError, OSError) as error:
            return None, reason_of(error)
        content = b"".join(parts)
        if len(content) != expected:
            return None, f"{len(content)} instead of {expected} bytes came"
        return content, ""

    def check_stopped(self) -> None:
        """Raises an error if the download of all files was given up."""
        if self._is_stopped.is_set():
            raise StoppedError

    def _request(self, method: str, url: str, wanted: Mapping[str, str]) -> requests.Response:
        """Returns an answer that is no failure; its body is still to be read."""
        import requests

        problem = ""
        for attempt in range(self.patience.attempts):
            self.check_stopped()
            asked = 0.0
            address, headers = self._access.signed(url)
            try:
                answer = self._session.request(
                    method,
                    address,
                    headers={"x-ms-version": _BLOB_API, "Accept-Encoding": "identity", **headers, **wanted},
                    timeout=self.patience.timeouts,
                    stream=True,
                    allow_redirects=False,
                )
            except requests.exceptions.SSLError as error:
                raise service_error(f"{urlsplit(url).netloc} cannot be trusted: {reason_of(error)}.") from error
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = reason_of(error)
            else:
                if answer.status_code in (200, 206, 416):
                    return answer
                problem, asked = f"{answer.status_code} {answer.reason}", retry_after(answer)
                answer.close()
                is_renewed = answer.status_code in (401, 403) and attempt == 0 and self._access.renew()
                if not is_renewed and not is_temporary(answer.status_code):
                    raise _refusal(url, answer)
            if attempt + 1 < self.patience.attempts:
                self._pause(attempt + 1, asked)
        raise service_error(
            f"The download of {shown(url)} failed {self.patience.attempts} times in a row: {problem}.",
            "Repeat the command: it continues where it stopped.",
        )

    def _pause(self, attempt: int, asked: float) -> None:
        if self._is_stopped.wait(self.patience.seconds_before(attempt, asked)):
            raise StoppedError


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


def shown(url: str) -> str:
    """Returns the address of a blob without its signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def writing_error(error: OSError, folder: Path) -> OutputError:
    """Returns the error for a file that cannot be written."""
    if error.errno == errno.ENOSPC:
        return OutputError(f"The disk of {folder} is full.", "Free some space, and repeat the command: it continues.")
    return OutputError(f"Cannot write to {folder}: {error.strerror or error}.", "Check who owns the folder.")


def _facts_of(answer: requests.Response) -> BlobFacts:
    headers = answer.headers
    whole = headers.get("Content-Range", "").rpartition("/")[2]
    md5 = headers.get("x-ms-blob-content-md5") or (headers.get("Content-MD5") if not whole else None)
    modified = headers.get("Last-Modified")
    return BlobFacts(
        size=int(whole) if whole.isdigit() else int(headers.get("Content-Length") or 0),
        version=headers.get("ETag", ""),
        modified=parsedate_to_datetime(modified).timestamp() if modified else time.time(),
        md5=base64.b64decode(md5) if md5 else None,
    )


def _md5_of(path: Path) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.digest()


def _refusal(url: str, answer: requests.Response) -> ServiceError:
    code = answer.headers.get("x-ms-error-code", answer.reason)
    hints = {
        403: "The signature may have expired, or you may not have the role 'Storage Blob Data Reader'.",
        404: "The file was removed.",
        412: "The file was written again in the meantime: repeat the command.",
    }
    text = f"{urlsplit(url).netloc} refuses {shown(url)} with status {answer.status_code}: {code}."
    return service_error(text, hints.get(answer.status_code, ""), status=answer.status_code)
