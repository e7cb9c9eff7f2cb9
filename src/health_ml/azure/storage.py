"""The storage behind a datastore: which blobs there are, and how to get access to them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from health_ml.azure.blob_reader import Access
from health_ml.azure.rest import BearerTokens, Credential
from health_ml.errors import DatasetError, did_you_mean

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

logger = logging.getLogger(__name__)

STORAGE_SCOPE = "https://storage.azure.com/.default"
KEY_HOURS = 24
_SIGNATURE_SECONDS = 30 * 60
"""A datastore hands out signatures that are valid for an hour."""
_LISTING: dict[str, Any] = {
    "connection_timeout": 15, "read_timeout": 60, "retry_total": 6, "initial_backoff": 0.5, "increment_base": 2,
}  # fmt: skip
_KINDS = {"azure_blob": "container_name", "azure_data_lake_gen2": "filesystem"}


@dataclass(frozen=True)
class Blob:
    """A file in blob storage.

    :param name: Its full name in the container.
    :param version: Its ETag.
    """

    name: str
    size: int
    version: str


class Container:
    """The container behind a datastore.

    :param address: Address of the container.
    :param grant: Asks for a new permission.
    """

    def __init__(self, address: str, grant: Callable[[], Permission]) -> None:
        self.address = address
        self.access = StorageAccess(grant)

    def blobs(self, prefix: str) -> list[Blob]:
        """Returns the files whose names start with a prefix, in the order of their names."""
        from azure.storage.blob import ContainerClient

        with ContainerClient.from_container_url(
            self.address, credential=self.access.permission.for_sdk, **_LISTING
        ) as client:
            found = client.list_blobs(name_starts_with=prefix or None, include=["metadata"])
            return [Blob(blob.name, blob.size, blob.etag) for blob in found if not _is_folder(blob)]

    def has_files(self, prefix: str) -> bool:
        """Returns whether there is a file whose name starts with a prefix."""
        from azure.storage.blob import ContainerClient

        with ContainerClient.from_container_url(
            self.address, credential=self.access.permission.for_sdk, **_LISTING
        ) as client:
            found = client.list_blobs(name_starts_with=prefix, include=["metadata"])
            return any(not _is_folder(blob) for blob in found)

    def url(self, blob: Blob) -> str:
        """Returns the address of a file, without a signature."""
        return f"{self.address}/{quote(blob.name, safe='/~')}"


def _is_folder(blob: Any) -> bool:
    """Returns True for the empty blob with which a data lake, or a tool with no other way, stands for a folder."""
    is_marked = str((blob.metadata or {}).get("hdi_isfolder", "")).lower() == "true"
    return blob.size == 0 and (is_marked or blob.name.endswith("/"))


class Permission:
    """What allows requests: a signature in the address, or a token.

    :param signature: The signature without a question mark, or "".
    :param credential: Whose token to use if there is no signature.
    """

    def __init__(self, signature: str, credential: Credential | None = None) -> None:
        self.signature = signature
        self._credential = credential
        self._tokens = BearerTokens(credential, STORAGE_SCOPE) if credential is not None else None

    @property
    def for_sdk(self) -> Any:
        """The same in the form that the SDK for storage takes."""
        return self.signature or self._credential

    def headers(self) -> Mapping[str, str]:
        """Returns the headers of a request."""
        return {"Authorization": f"Bearer {self._tokens.current()}"} if self._tokens is not None else {}


class StorageAccess(Access):
    """Access to a container, asked for again before it ends, and when it is refused.

    :param grant: Asks for a new permission.
    """

    def __init__(self, grant: Callable[[], Permission]) -> None:
        self._grant = grant
        self._lock = threading.Lock()
        self._permission: Permission | None = None
        self._granted = 0.0

    @property
    def permission(self) -> Permission:
        """What allows requests now."""
        with self._lock:
            if self._permission is None or time.monotonic() - self._granted > _SIGNATURE_SECONDS:
                self._permission = self._grant()
                self._granted = time.monotonic()
            return self._permission

    def signed(self, url: str) -> tuple[str, Mapping[str, str]]:
        """Returns the address with a signature, or headers with a token."""
        permission = self.permission
        return (f"{url}?{permission.signature}", {}) if permission.signature else (url, permission.headers())

    def renew(self) -> bool:
        """Forgets the permission, unless it is a new one."""
        with self._lock:
            if time.monotonic() - self._granted > 1:
                self._permission = None
        return True


def open_container(client: MLClient, datastore: str) -> Container:
    """Returns the container behind a datastore.

    :param datastore: Its name, or "" for the default one of the workspace.
    :raises DatasetError: If there is no such datastore, or it is not in blob storage.
    """
    store = find_datastore(client, datastore)
    kind = str(getattr(store.type, "value", store.type)).lower()
    kind = next((known for known in _KINDS if known.replace("_", "") == kind.replace("_", "")), kind)
    if kind not in _KINDS:
        raise DatasetError(
            f"The datastore {store.name} is of the kind {kind}, from which nothing can be downloaded here.",
            "Copy the data to a datastore in blob storage, or give a folder on this machine as --local_datasets.",
        )
    address = f"https://{store.account_name}.blob.{store.endpoint}/{getattr(store, _KINDS[kind])}"
    return Container(address, lambda: permission_for(client, str(store.name), address))


def find_datastore(client: MLClient, name: str) -> Any:
    """Returns a datastore as the SDK describes it.

    :param name: Its name, or "" for the default one of the workspace.
    :raises DatasetError: If there is no such datastore.
    """
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return client.datastores.get(name) if name else client.datastores.get_default()
    except ResourceNotFoundError as error:
        known = sorted(str(store.name) for store in client.datastores.list())
        raise DatasetError(
            f"The workspace {client.workspace_name} has no datastore {name!r}.",
            f"{did_you_mean(name, known)} It has {', '.join(known)}.".strip(),
        ) from error


def permission_for(client: MLClient, datastore: str, address: str) -> Permission:
    """Returns what allows requests: what the datastore hands out, else the user's own identity.

    :param address: Address of a container in the datastore's account.
    """
    from azure.core.exceptions import HttpResponseError

    try:
        secrets = client.datastores.get(datastore, include_secrets=True).credentials
    except HttpResponseError as error:
        if error.status_code not in (401, 403):
            raise
        logger.info("The datastore %s hands out no key: trying your own identity.", datastore)
        return Permission("", client._credential)
    if signature := getattr(secrets, "sas_token", None):
        return Permission(str(signature).lstrip("?"))
    if key := getattr(secrets, "account_key", None):
        return Permission(_own_signature(address, str(key)))
    if secret := getattr(secrets, "client_secret", None):
        from azure.identity import ClientSecretCredential

        return Permission("", ClientSecretCredential(secrets.tenant_id, secrets.client_id, secret))
    return Permission("", client._credential)


def _own_signature(address: str, key: str) -> str:
    """Returns a signature for reading a container, made from the key of its account."""
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    account, _, container = address.removeprefix("https://").partition("/")
    now = datetime.now(timezone.utc)
    return str(
        generate_container_sas(
            account.partition(".")[0],
            container,
            account_key=key,
            permission=ContainerSasPermissions(read=True, list=True),
            start=now - timedelta(minutes=15),
            expiry=now + timedelta(hours=KEY_HOURS),
        )
    )
