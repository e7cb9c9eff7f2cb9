"""Writes the blobs of a version of the code to its container, several at once."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from health_ml.azure.job_code import JobCode, StoredBlob, changed, pack
from health_ml.azure.rest import (
    Patience,
    ServiceError,
    is_temporary,
    new_session,
    reason_of,
    refusal,
    retry_after,
    service_error,
)
from health_ml.planning.file_hashes import key_of

if TYPE_CHECKING:
    import requests

    from health_ml.planning.file_hashes import SnapshotFile

logger = logging.getLogger(__name__)

BLOB_API = "2021-08-06"
WORKERS = 16
BLOCK_BYTES = 8 << 20
"""Larger files are sent in blocks of this size, several at once."""
MOST_COPIED_AT_ONCE = 256 << 20
"""Up to this size the storage service promises to copy while it answers; larger blobs it may copy afterwards."""
COPY_ATTEMPTS = 2
"""How often to ask for a copy: what cannot be copied is sent."""
COPY_POLL_SECONDS = 0.5


@dataclass
class UploadReport:
    """What an upload did.

    :param code_id: Id of the version of the code.
    :param sent_blobs: How many blobs were sent.
    :param sent_bytes: How many bytes that were.
    :param copied_blobs: How many were copied from the version before.
    """

    code_id: str
    sent_blobs: int = 0
    sent_bytes: int = 0
    copied_blobs: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_sent(self, size: int) -> None:
        """Counts a blob that was sent."""
        with self.lock:
            self.sent_blobs += 1
            self.sent_bytes += size


class StoppedError(Exception):
    """Another blob could not be written, so this one is not needed any more."""


class BlobWriter:
    """Writes the blobs of a code version with several connections. Use it as a context manager.

    :param container: Address of the container, with a signature.
    :param code: The files.
    :param report: Counts what is done.
    """

    def __init__(self, container: str, code: JobCode, report: UploadReport, *, patience: Patience) -> None:
        self._address, _, self._signature = container.partition("?")
        self._code = code
        self._report = report
        self._patience = patience
        self._session = new_session()
        self._is_stopped = threading.Event()

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def write(self, blobs: Sequence[StoredBlob], previous: Mapping[str, str]) -> None:
        """Writes all blobs.

        :param previous: Where the storage service finds the same content, by identity.
        :raises ServiceError: If one of them cannot be written.
        :raises SnapshotError: If a file was changed meanwhile.
        """
        large = [blob for blob in blobs if blob.size > BLOCK_BYTES and not blob.is_pack]
        small = [blob for blob in blobs if blob.size <= BLOCK_BYTES or blob.is_pack]
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="himl-upload") as pool:
            try:
                waiting = [pool.submit(self._write_small, blob, previous.get(blob.identity, "")) for blob in small]
                for blob in large:
                    self._write_large(blob, previous.get(blob.identity, ""), pool)
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                self._is_stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _write_small(self, blob: StoredBlob, source: str) -> None:
        if self._is_copied(blob, source):
            return
        content = pack(self._code, blob) if blob.is_pack else self._code.read(blob.members[0])
        self._put(blob.name, content, {"x-ms-blob-type": "BlockBlob"})
        self._report.add_sent(len(content))

    def _write_large(self, blob: StoredBlob, source: str, pool: ThreadPoolExecutor) -> None:
        """Sends a file in blocks."""
        if self._is_copied(blob, source):
            return
        file = blob.members[0]
        slots = threading.BoundedSemaphore(WORKERS)  # so that no more than this is in memory
        names: list[str] = []
        blocks: list[Future[None]] = []
        for content in self._blocks(file):
            names.append(base64.b64encode(f"{len(names):08}".encode()).decode())
            slots.acquire()
            block = pool.submit(self._put_block, blob.name, names[-1], content)
            block.add_done_callback(lambda _: slots.release())
            blocks.append(block)
            for done in [block for block in blocks if block.done()]:
                done.result()
        for block in blocks:
            block.result()
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        self._put(blob.name, body, {"Content-Type": "application/xml"}, comp="blocklist")
        self._report.add_sent(file.size)

    def _blocks(self, file: SnapshotFile) -> Iterator[bytes]:
        """Yields the blocks of a file.

        It is hashed once more only if its hash is not known to be right by the rule by which it is remembered.

        :raises SnapshotError: At the end, unless it was all the time what the manifest says.
        """
        digest = hashlib.sha256()
        try:
            with self._code.place(file).open("rb", buffering=0) as stream:
                key = key_of(os.fstat(stream.fileno()))
                is_known = self._code.is_remembered(file, key)
                while content := stream.read(BLOCK_BYTES):
                    if not is_known:
                        digest.update(content)
                    yield content
                is_same = key_of(os.fstat(stream.fileno())) == key
        except OSError as error:
            raise changed(file) from error
        if not (is_same if is_known else digest.hexdigest() == file.sha256):
            raise changed(file)

    def _put_block(self, name: str, block: str, content: bytes) -> None:
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        self._put(name, content, {"Content-MD5": md5}, comp="block", blockid=block)

    # --- copies -------------------------------------------------------------------------------------------------------

    def _is_copied(self, blob: StoredBlob, source: str) -> bool:
        """Returns whether the storage service has copied a blob; if it cannot, the blob has to be sent."""
        if not source:
            return False
        ways = [{"x-ms-requires-sync": "true"}, *([{}] if blob.size > MOST_COPIED_AT_ONCE else [])]
        is_copied = any(self._copy(blob.name, {"x-ms-copy-source": source, **way}) for way in ways)
        with self._report.lock:
            self._report.copied_blobs += is_copied
        return is_copied

    def _copy(self, name: str, headers: Mapping[str, str]) -> bool:
        try:
            answer = self._request("PUT", name, b"", headers, {}, attempts=COPY_ATTEMPTS)
            while answer.headers.get("x-ms-copy-status") == "pending":
                self._pause(COPY_POLL_SECONDS)
                answer = self._request("HEAD", name, b"", {}, {})
        except ServiceError as error:
            logger.debug("%s cannot be copied from the version before: %s", name, error)
            return False
        return bool(answer.headers.get("x-ms-copy-status", "success") == "success")

    # --- requests -----------------------------------------------------------------------------------------------------

    def _put(self, name: str, content: bytes, headers: Mapping[str, str], **query: str) -> requests.Response:
        return self._request("PUT", name, content, headers, query)

    def _request(
        self,
        method: str,
        name: str,
        content: bytes,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        *,
        attempts: int | None = None,
    ) -> requests.Response:
        import requests

        url = f"{self._address}/{quoted(name)}"
        # Another write of the same is the same: every request can be repeated.
        parameters = "&".join([*(f"{key}={quote(value, safe='')}" for key, value in query.items()), self._signature])
        problem = ""
        attempts = min(attempts or self._patience.attempts, self._patience.attempts)
        for attempt in range(attempts):
            if self._is_stopped.is_set():
                raise StoppedError
            asked = 0.0
            try:
                answer = self._session.request(
                    method,
                    f"{url}?{parameters}",
                    data=content,
                    headers={"x-ms-version": BLOB_API, **headers},
                    timeout=self._patience.timeouts,
                    allow_redirects=False,
                )
            except requests.exceptions.SSLError as error:
                raise service_error(
                    f"{self._address} cannot be trusted: {reason_of(error)}."
                ) from None  # its text has the signature
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = reason_of(error)
            else:
                if answer.status_code < 300:
                    return answer
                problem = f"{answer.status_code} {answer.headers.get('x-ms-error-code') or answer.reason}"
                asked = retry_after(answer)
                if not is_temporary(answer.status_code):
                    raise refusal(method, url, answer.status_code, problem)
            if attempt + 1 < attempts:
                self._pause(self._patience.seconds_before(attempt + 1, asked))
        raise service_error(
            f"{name} could not be sent, {attempts} times in a row: {problem}.",
            "Check the network; then repeat the command.",
        )

    def _pause(self, seconds: float) -> None:
        if self._is_stopped.wait(seconds):
            raise StoppedError


def quoted(name: str) -> str:
    """Returns the name of a blob as a part of an address."""
    return quote(name, safe="/~")
