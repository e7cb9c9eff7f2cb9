"""Sends the code of a job to AzureML, and only what AzureML does not have.

The service is asked first for code with the same hash; unchanged code is neither read nor sent. Changed code becomes a
version of its own, in a container of its own, so that earlier jobs keep theirs: what is in the version that this
machine sent last is copied from there by the storage service, and only the rest is sent. A version is registered when
it is complete, so that an upload that breaks off leaves nothing that anybody could find.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from health_ml.azure.job_code import JobCode, StoredBlob, changed, layout, pack
from health_ml.azure.rest import (
    Patience,
    RestClient,
    ServiceError,
    is_temporary,
    new_session,
    reason_of,
    refusal,
    retry_after,
    service_error,
)

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

CODES_API = "2023-04-01"
BLOB_API = "2021-08-06"
HASH_VERSION = "202208"
"""Version of the hash that the SDK has. The service compares texts; ours is of other content than the SDK's."""
VERSION = "1"
WORKERS = 16
BLOCK_BYTES = 8 << 20
"""Larger files are sent in blocks of this size, several at once."""
MOST_COPIED_AT_ONCE = 256 << 20
"""Up to this size the storage service promises to copy while it answers; larger blobs it may copy afterwards."""
COPY_ATTEMPTS = 2
"""How often to ask for a copy: what cannot be copied is sent."""
COPY_POLL_SECONDS = 0.5
_MEMORY_VERSION = 1


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


class CodeUpload:
    """Sends code to a workspace.

    :param rest: Connection to Azure's resource manager.
    :param workspace: ARM id of the workspace.
    :param memory_file: Where it is remembered what was sent last; None remembers nothing.
    :param source_signature: Returns what has to follow the address of a blob of an earlier version so that the storage
        service may read it, or "" if there is no such thing.
    :param patience: How often to try, and how long.
    """

    def __init__(
        self,
        rest: RestClient,
        workspace: str,
        *,
        memory_file: Path | None = None,
        source_signature: Callable[[str], str] = lambda address: "",
        patience: Patience | None = None,
    ) -> None:
        self._rest = rest
        self._codes = f"{workspace}/codes"
        self._memory_file = memory_file
        self._source_signature = source_signature
        self._patience = patience or Patience()

    def provide(self, code: JobCode) -> UploadReport:
        """Returns the id of a version of exactly this code, after sending what AzureML does not have.

        :raises ServiceError: If the service refuses it or cannot be reached; another call starts again.
        :raises SnapshotError: If a file was changed since the snapshot was taken.
        """
        known = self._find(code.content_hash)
        if known:
            logger.info("AzureML has this version of the code already.")
            return UploadReport(known)
        return self._send(code)

    def _find(self, content_hash: str) -> str:
        """Returns the id of the version with a hash, or an empty text. The name in the path means nothing."""
        query = {"api-version": CODES_API, "hash": content_hash, "hashVersion": HASH_VERSION}
        found = self._rest.get(f"{self._codes}/{uuid.uuid4()}/versions", **query)
        versions = found.get("value") or []
        return str(versions[0]["id"]) if versions else ""

    def _send(self, code: JobCode) -> UploadReport:
        path = f"{self._codes}/{uuid.uuid4()}/versions/{VERSION}"
        query = {"api-version": CODES_API}
        body = {"pendingUploadType": "TemporaryBlobReference"}
        place = self._rest.send("POST", f"{path}/startPendingUpload", body, **query)["blobReferenceForConsumption"]
        blobs = layout(code)
        report = UploadReport("")
        start = time.monotonic()
        with BlobWriter(place["credential"]["sasUri"], code, report, patience=self._patience) as writer:
            writer.write(blobs, self._previous(blobs))
        address = f"{place['blobUri'].rstrip('/')}/"
        properties = {
            "codeUri": address,
            "description": "Sent by himl-runner.",
            "isAnonymous": True,
            "properties": {"hash_sha256": code.content_hash, "hash_version": HASH_VERSION},
        }
        report.code_id = str(self._rest.send("PUT", path, {"properties": properties}, **query)["id"])
        self._remember(address, blobs)
        logger.info(
            "Sent %d files (%.1f MB) of the code in %.1f s; %d are the same as last time.",
            *(report.sent_blobs, report.sent_bytes / 1e6, time.monotonic() - start, report.copied_blobs),
        )
        return report

    def _previous(self, blobs: Sequence[StoredBlob]) -> dict[str, str]:
        """Returns where blobs of the same content are, with a signature, by the identity of what they hold."""
        try:
            memory = json.loads(self._memory_file.read_bytes()) if self._memory_file else {}
            address, stored = str(memory["address"]).replace(":443/", "/"), dict(memory["stored"])
            is_known = memory["version"] == _MEMORY_VERSION
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        shared = {blob.identity for blob in blobs} & set(stored)
        signature = self._source_signature(address.rstrip("/")) if is_known and shared else ""
        if not signature:
            return {}
        return {identity: f"{address}{_quoted(stored[identity])}?{signature}" for identity in shared}

    def _remember(self, address: str, blobs: Sequence[StoredBlob]) -> None:
        if self._memory_file is None:
            return
        memory = {
            "version": _MEMORY_VERSION,
            "address": address,
            "stored": {blob.identity: blob.name for blob in blobs},
        }
        temporary = self._memory_file.with_name(f"{self._memory_file.name}.{uuid.uuid4().hex}")
        try:
            self._memory_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.write_text(json.dumps(memory), encoding="utf-8")
            temporary.replace(self._memory_file)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            logger.debug("What was sent cannot be remembered: %s", error)


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
        headers = {"x-ms-blob-type": "BlockBlob", "Content-MD5": _md5(content)}
        self._put(blob.name, content, headers)
        self._report.add_sent(len(content))

    def _write_large(self, blob: StoredBlob, source: str, pool: ThreadPoolExecutor) -> None:
        """Sends a file in blocks, and checks while it is read that it is what the manifest says."""
        if self._is_copied(blob, source):
            return
        file = blob.members[0]
        slots = threading.BoundedSemaphore(2 * WORKERS)
        digest = hashlib.sha256()
        names: list[str] = []
        blocks: list[Future[None]] = []
        for content in self._blocks(blob):
            digest.update(content)
            names.append(base64.b64encode(f"{len(names):08}".encode()).decode())
            slots.acquire()
            block = pool.submit(self._put_block, blob.name, names[-1], content)
            block.add_done_callback(lambda _: slots.release())
            blocks.append(block)
            for done in [block for block in blocks if block.done()]:
                done.result()
        for block in blocks:
            block.result()
        if digest.hexdigest() != file.sha256:
            raise changed(file)
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        self._put(blob.name, body, {"Content-Type": "application/xml"}, comp="blocklist")
        self._report.add_sent(file.size)

    def _blocks(self, blob: StoredBlob) -> Iterator[bytes]:
        try:
            with self._code.place(blob.members[0]).open("rb", buffering=0) as stream:
                while content := stream.read(BLOCK_BYTES):
                    yield content
        except OSError as error:
            raise changed(blob.members[0]) from error

    def _put_block(self, name: str, block: str, content: bytes) -> None:
        self._put(name, content, {"Content-MD5": _md5(content)}, comp="block", blockid=block)

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

        url = f"{self._address}/{_quoted(name)}"
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


def memory_file(cache_folder: Path, workspace: str, folder: Path) -> Path:
    """Returns where it is remembered what was sent last of a folder to a workspace."""
    digest = hashlib.sha256(f"{workspace.lower()}\n{folder.resolve()}".encode("utf-8", "surrogateescape"))
    return cache_folder / f"{digest.hexdigest()[:32]}.json"


def _quoted(name: str) -> str:
    return quote(name, safe="/~")


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
