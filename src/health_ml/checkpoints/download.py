"""Downloads of checkpoints that are complete or fail: resumed after a broken connection, renamed when all is there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from health_ml.checkpoints.http_answer import Answer, check_answer, check_redirects, status_error
from health_ml.checkpoints.inspect import check_downloaded
from health_ml.checkpoints.parser import mask_url
from health_ml.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import requests

_log = logging.getLogger(__name__)

_LONGEST_NAME = 150
_READ_BYTES = 1 << 20
_WAY_OUT = "Try again later, or download the file with a browser and give its path."


@dataclass(frozen=True)
class DownloadLimits:
    """How patient a download is.

    :param connect_timeout: Seconds until the server has to accept the connection.
    :param read_timeout: Seconds that may pass without a single byte.
    :param attempts: How often to try in a row without getting any further.
    :param absent_attempts: How often to try where nobody answers: no such host, or it refuses connections.
    :param pause: Seconds before the second attempt; doubles with each one.
    :param longest_pause: Most seconds between two attempts.
    :param slowest_bytes_per_second: A connection that is slower than this for ``read_timeout`` seconds is given up.
    :param largest_bytes: A larger file is refused.
    """

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    attempts: int = 5
    absent_attempts: int = 2
    pause: float = 1.0
    longest_pause: float = 30.0
    slowest_bytes_per_second: float = 1024.0
    largest_bytes: int = 1 << 40


class _BrokenDownloadError(Exception):
    """The connection broke or the server is busy: worth another attempt."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def check_reachable(url: str, limits: DownloadLimits | None = None) -> None:
    """Asks a server for a file without taking it, so that a wrong address is noticed before anything starts.

    A server that is busy or slow passes: the download itself is more patient.

    :raises CheckpointError: If nobody answers, or the server refuses.
    """
    _Download(url, Path(file_name_of(url)), limits or DownloadLimits()).probe()


def download_checkpoint(url: str, folder: Path, limits: DownloadLimits) -> Path:
    """Returns the file that a URL was downloaded to: its last part, in the given folder.

    A file that an earlier call has completed is not downloaded again. Of several processes that ask for the same
    file, one downloads while the others wait.

    :raises CheckpointError: If the server refuses, breaks off, or sends something else than a checkpoint.
    :raises OutputError: If the folder cannot be written or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / file_name_of(url)
        with _lock(folder / f".{target.name}.lock"):
            download = _Download(url, target, limits)
            if not download.is_complete():
                download.run()
        return target
    except OSError as error:
        raise _writing_error(error, folder) from error


def file_name_of(url: str) -> str:
    """Returns the last part of the URL's path as a harmless file name."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    harmless = re.sub(r"[^\w.+=-]", "_", name).encode("utf-8", "replace")[-_LONGEST_NAME:]
    return harmless.decode("utf-8", "ignore").lstrip(".") or "checkpoint"


class _Download:
    """One file on its way: the bytes that are here, where they came from, and how to get the rest."""

    def __init__(self, url: str, target: Path, limits: DownloadLimits) -> None:
        self._url = url
        self._shown_url = mask_url(url)
        self._fingerprint = hashlib.sha256(url.encode()).hexdigest()
        self._target = target
        self._limits = limits
        self._partial = target.with_name(f".{target.name}.part")
        self._source = target.with_name(f".{target.name}.source.json")

    def is_complete(self) -> bool:
        """True if the target was downloaded completely from the same URL before."""
        source = self._read_source()
        return self._target.is_file() and source.get("complete_bytes") == self._target.stat().st_size

    def probe(self) -> None:
        """Raises if the server refuses or nobody answers. Nothing is written."""
        import requests  # half a second that only a download should cost

        failures = 0
        with requests.Session() as session:
            while True:
                try:
                    with session.get(self._url, stream=True, timeout=self._timeouts) as response:
                        if not (response.ok or _is_busy(response)):
                            raise status_error(response, self._shown_url)
                    return
                except requests.RequestException as error:
                    if not _is_absence(error):
                        return
                    failures += 1
                    self._pause_or_give_up(failures, error)

    @property
    def _timeouts(self) -> tuple[float, float]:
        return self._limits.connect_timeout, self._limits.read_timeout

    def run(self) -> None:
        """Downloads until the file is complete, or gives up."""
        import requests  # half a second that only a download should cost

        failures = 0
        with requests.Session() as session:
            session.max_redirects = 10
            while True:
                before = self._bytes_here()
                try:
                    total = self._attempt(session)
                    break
                except (_BrokenDownloadError, requests.ConnectionError, requests.Timeout) as error:
                    if isinstance(error, requests.exceptions.SSLError):
                        raise self._error(f"cannot be trusted: {error}", _WAY_OUT) from error
                    failures = 1 if self._bytes_here() > before else failures + 1
                    self._pause_or_give_up(failures, error)
                except (requests.exceptions.InvalidSchema, requests.TooManyRedirects) as error:
                    raise self._error(f"is redirected to where it cannot be followed: {_reason(error)}", "") from error
                except requests.RequestException as error:
                    raise self._error(f"failed: {_reason(error)}", _WAY_OUT) from error
        self._accept(total)

    def _attempt(self, session: requests.Session) -> int:
        """Downloads what is missing and returns the size of the complete file."""
        offset, headers = self._where_to_continue()
        with session.get(self._url, headers=headers, stream=True, timeout=self._timeouts) as response:
            check_redirects(response)
            if response.status_code == 416 and offset:
                self._partial.unlink()
                raise _BrokenDownloadError("the file on the server has changed")
            if _is_busy(response):
                raise _BrokenDownloadError(f"{response.status_code} {response.reason}", _retry_after(response))
            if response.status_code not in (200, 206):
                raise status_error(response, self._shown_url)
            answer = check_answer(response, offset, self._shown_url, self._limits.largest_bytes)
            if answer.offset and answer.validator != headers["If-Range"]:
                self._partial.unlink()
                raise _BrokenDownloadError("the file on the server has changed")
            return self._receive(response, answer)

    def _where_to_continue(self) -> tuple[int, dict[str, str]]:
        """Returns the number of bytes that are here already, and the headers that ask for the rest."""
        headers = {"Accept-Encoding": "identity"}
        validator = self._read_source().get("validator")
        offset = self._bytes_here()
        if not (offset and validator):
            return 0, headers
        return offset, {**headers, "Range": f"bytes={offset}-", "If-Range": str(validator)}

    def _receive(self, response: requests.Response, answer: Answer) -> int:
        """Writes the body to the partial file and returns the size of the complete file."""
        self._write_source(validator=answer.validator)
        with self._partial.open("r+b" if answer.offset else "wb") as file:
            file.seek(answer.offset)
            for piece in _pieces(response, self._limits):
                file.write(piece)
                if file.tell() > self._limits.largest_bytes:
                    raise self._error(f"is larger than {self._limits.largest_bytes} bytes", "")
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
            here = file.tell()
        if answer.total is not None and here != answer.total:
            raise _BrokenDownloadError(f"the connection ended after {here} of {answer.total} bytes")
        try:
            check_downloaded(self._partial, self._shown_url, is_length_known=answer.is_length_known)
        except CheckpointError:
            self._partial.unlink()
            raise
        return here

    def _accept(self, total: int) -> None:
        self._partial.replace(self._target)
        self._write_source(complete_bytes=total)
        _log.info("Downloaded %s to %s (%d bytes).", self._shown_url, self._target, total)

    def _pause_or_give_up(self, failures: int, error: Exception) -> None:
        is_absent = _is_absence(error)
        if failures >= (self._limits.absent_attempts if is_absent else self._limits.attempts):
            here = "" if is_absent else f"; {self._bytes_here()} bytes are here"
            raise self._error(f"failed {failures} times in a row: {_reason(error)}{here}", _WAY_OUT)
        asked = error.pause if isinstance(error, _BrokenDownloadError) else 0.0
        pause = min(max(asked, self._limits.pause * 2 ** (failures - 1)), self._limits.longest_pause)
        _log.warning("The download of %s broke: %s. Next attempt in %.1f s.", self._shown_url, _reason(error), pause)
        time.sleep(pause)

    def _error(self, what: str, hint: str) -> CheckpointError:
        return CheckpointError(f"The download of {self._shown_url} {what}.", hint)

    def _bytes_here(self) -> int:
        return self._partial.stat().st_size if self._partial.is_file() else 0

    def _read_source(self) -> dict[str, Any]:
        """Returns what is known about the files here if they come from this URL, else nothing."""
        try:
            source = json.loads(self._source.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return source if isinstance(source, dict) and source.get("url_sha256") == self._fingerprint else {}

    def _write_source(self, **facts: Any) -> None:
        text = json.dumps({"url": self._shown_url, "url_sha256": self._fingerprint, **facts})
        temporary = self._source.with_name(f"{self._source.name}.tmp")
        temporary.write_text(text)
        temporary.replace(self._source)


def _pieces(response: requests.Response, limits: DownloadLimits) -> Iterator[bytes]:
    """Yields the body as it comes, and gives up on a server that hardly sends anything."""
    from urllib3.exceptions import HTTPError

    window_start, window_bytes = time.monotonic(), 0
    read = getattr(response.raw, "read1", response.raw.read)  # read1 returns what is there, urllib3 1 lacks it
    while True:
        try:
            piece: bytes = read(_READ_BYTES)
        except (HTTPError, OSError) as error:
            raise _BrokenDownloadError(_reason(error)) from error
        if not piece:
            return
        yield piece
        window_bytes += len(piece)
        seconds = time.monotonic() - window_start
        if seconds >= limits.read_timeout:
            if window_bytes < seconds * limits.slowest_bytes_per_second:
                raise _BrokenDownloadError(f"only {window_bytes} bytes came in {seconds:.0f} s")
            window_start, window_bytes = time.monotonic(), 0


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock; the system releases it when its holder ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("Another process downloads to %s; waiting for it.", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_busy(response: requests.Response) -> bool:
    return response.status_code in (408, 425, 429) or response.status_code >= 500


def _is_absence(error: Exception) -> bool:
    """True if there is nobody to talk to: an unknown host, or one that refuses the connection."""
    from urllib3.exceptions import NewConnectionError

    innermost = _innermost(error)
    return isinstance(getattr(innermost, "reason", innermost), (NewConnectionError, ConnectionRefusedError))


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None or (error.args and isinstance(error.args[0], BaseException)):
        error = error.__cause__ or error.args[0]
    return error


def _reason(error: BaseException) -> str:
    """Returns the innermost reason in a few words, without URLs, which may hold secrets."""
    error = _innermost(error)
    if isinstance(error, http.client.IncompleteRead):
        missing = f", {error.expected} bytes are missing" if error.expected else ""
        return f"the connection ended too early{missing}"
    text = str(getattr(error, "reason", None) or error) or type(error).__name__
    return re.sub(r"https?://\S+", lambda match: mask_url(match.group()), text)


def _writing_error(error: OSError, folder: Path) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(f"The disk of {folder} is full.", "Free some space, or choose another --output_to.")
    return OutputError(f"Cannot write to {folder}: {error.strerror or error}.", "Check who owns the folder.")
