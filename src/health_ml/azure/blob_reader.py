"""Reads blobs over several connections: piece by piece, patiently, and only as long as somebody wants them."""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, ClassVar, TypeVar
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

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

PIECE_BYTES = 16 << 20
"""Files up to this size come with one request; of larger ones, several pieces are on their way at once."""
READ_BYTES = 1 << 20
_BLOB_API = "2021-08-06"
_REPORT_SECONDS = 10.0


class Access:
    """How requests for blobs are allowed. This is for addresses that contain a signature already."""

    def signed(self, url: str) -> tuple[str, Mapping[str, str]]:
        """Returns the address to ask, and headers for the request."""
        return url, {}

    def renew(self) -> bool:
        """Returns True if access that was refused may be granted now."""
        return False


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
class Progress:
    """How much has been received by all threads.

    :param is_shown: Whether to say so now and then.
    """

    is_shown: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    received: int = 0
    files: int = 0
    last_report: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        """Counts bytes, and reports now and then."""
        with self.lock:
            self.received += count
            now = time.monotonic()
            if self.is_shown and now - self.last_report >= _REPORT_SECONDS:
                self.last_report = now
                logger.info("Downloaded %d files and %.1f MB so far.", self.files, self.received / 1e6)


class StoppedError(Exception):
    """Another file could not be downloaded, so this one is not needed any more."""


Reader = TypeVar("Reader", bound="BlobReader")


class BlobReader:
    """Reads blobs, also from several threads at once. Use it as a context manager.

    :param access: How requests are allowed.
    :param patience: How often to try, and how long.
    :param piece_bytes: Size of a piece of a large file.
    """

    shows_progress: ClassVar[bool] = False

    def __init__(
        self, access: Access | None = None, *, patience: Patience | None = None, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self.patience = patience or Patience()
        self.piece_bytes = piece_bytes
        self.progress = Progress(self.shows_progress)
        self._access = access or Access()
        self._session = new_session(CONNECTIONS)
        self._is_stopped = threading.Event()

    def __enter__(self: Reader) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

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
            for part in answer.iter_content(READ_BYTES):
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
                raise service_error(
                    f"{urlsplit(url).netloc} cannot be trusted: {reason_of(error)}."
                ) from None  # its text has the signature
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
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

    def stop(self) -> None:
        """Ends all downloads that are under way, and those that come."""
        self._is_stopped.set()


def shown(url: str) -> str:
    """Returns the address of a blob without its signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


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


def _refusal(url: str, answer: requests.Response) -> ServiceError:
    code = answer.headers.get("x-ms-error-code", answer.reason)
    hints = {
        403: "The signature may have expired, or you may not have the role 'Storage Blob Data Reader'.",
        404: "The file was removed.",
        412: "The file was written again in the meantime: repeat the command.",
    }
    text = f"{urlsplit(url).netloc} refuses {shown(url)} with status {answer.status_code}: {code}."
    return service_error(text, hints.get(answer.status_code, ""), status=answer.status_code)
