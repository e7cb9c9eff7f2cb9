"""Sends the code of a job to AzureML, and only what AzureML does not have.

The service is asked first for code with the same hash; unchanged code is neither read nor sent. Changed code becomes a
version of its own, in a container of its own, so that earlier jobs keep theirs: what is in the version that this
machine sent last is copied from there by the storage service, and only the rest is sent. A version is registered when
it is complete, so that an upload that breaks off leaves nothing that anybody could find.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from health_ml.azure.blob_writer import BlobWriter, UploadReport, quoted
from health_ml.azure.job_code import JobCode, StoredBlob, layout
from health_ml.azure.rest import Patience, RestClient

logger = logging.getLogger(__name__)

CODES_API = "2023-04-01"
HASH_VERSION = "202208"
"""Version of the hash that the SDK has. The service compares texts; ours is of other content than the SDK's."""
VERSION = "1"
_MEMORY_VERSION = 1


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
        known = self.find(code)
        return UploadReport(known) if known else self.send(code)

    def find(self, code: JobCode) -> str:
        """Returns the id of a version of exactly this code, or an empty text if AzureML has none.

        :raises ServiceError: If the service refuses it or cannot be reached.
        """
        query = {"api-version": CODES_API, "hash": code.content_hash, "hashVersion": HASH_VERSION}
        found = self._rest.get(f"{self._codes}/{uuid.uuid4()}/versions", **query)  # the name in it means nothing
        versions = found.get("value") or []
        if not versions:
            return ""
        logger.info("AzureML has this version of the code already.")
        return str(versions[0]["id"])

    def send(self, code: JobCode) -> UploadReport:
        """Returns the id of a new version of the code, after sending what the version before does not have.

        :raises ServiceError: If the service refuses it or cannot be reached; another call starts again.
        :raises SnapshotError: If a file was changed since the snapshot was taken.
        """
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
            "Sent %d %s of the code (%.1f MB) in %.1f s; %d from last time are used again.",
            *(
                report.sent_blobs,
                "file" if report.sent_blobs == 1 else "files",
                report.sent_bytes / 1e6,
                time.monotonic() - start,
                report.copied_blobs,
            ),
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
        return {identity: f"{address}{quoted(stored[identity])}?{signature}" for identity in shared}

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


def memory_file(cache_folder: Path, workspace: str, folder: Path) -> Path:
    """Returns where it is remembered what was sent last of a folder to a workspace."""
    digest = hashlib.sha256(f"{workspace.lower()}\n{folder.resolve()}".encode("utf-8", "surrogateescape"))
    return cache_folder / f"{digest.hexdigest()[:32]}.json"
