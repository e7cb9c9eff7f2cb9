"""Datasets of a workspace on this machine: downloaded once into a cache that all processes of the user share.

A version of a data asset is downloaded into a folder of its own that appears when it is complete, so whoever finds it
need not ask anybody: neither for credentials nor whether it is complete. A folder without a version is listed every
time; its copy is named after the listing, so a folder that has changed is another copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from health_ml.azure.client import TIMEOUTS, WorkspaceName, azure_errors
from health_ml.azure.storage import Blob, Container, open_container
from health_ml.azure.transfer import BlobDownloader, RemoteFile, writing_error
from health_ml.errors import DatasetError, did_you_mean
from health_ml.planning.dataset_inputs import StorageAddress
from health_ml.planning.datasets import LATEST, DatasetReference, folder_uri, listed_assets, parse_datasets
from health_ml.planning.snapshot import user_cache_folder
from health_ml.settings import DATASET_CACHE_FOLDER

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_SPARE_BYTES = 64 << 20


def dataset_cache_folder(environ: Mapping[str, str]) -> Path:
    """Returns the folder that the datasets of this user are downloaded to."""
    return user_cache_folder(environ) / DATASET_CACHE_FOLDER


@dataclass(frozen=True)
class _Source:
    """Where the data of a dataset are.

    :param cache_path: Folder of this version, relative to the cache of the workspace; "" if the data have none.
    :param uri: Address of the data.
    """

    cache_path: str
    uri: str


class DatasetCache:
    """The datasets of a workspace that are on this machine.

    :param folder: Folder of the cache.
    :param workspace: The workspace.
    :param connect: Returns a client of it; called when something has to be downloaded or asked for.
    """

    def __init__(self, folder: Path, workspace: WorkspaceName, connect: Callable[[], MLClient]) -> None:
        digest = hashlib.sha256(workspace.arm_id.lower().encode()).hexdigest()[:8]
        self.folder = folder.absolute() / f"{workspace.name}-{digest}"
        self._workspace = workspace
        self._connect = connect
        self._client: MLClient | None = None

    def provide(self, texts: Sequence[str], *, datastore: str = "") -> list[Path]:
        """Returns a folder for each dataset, complete, in the order in which they are named.

        :param texts: The value of ``--azure_datasets``.
        :param datastore: The value of ``--datastore``: where folders are that are no data asset.
        :raises DatasetError: If there is no such dataset, it is empty, or the disk is too small.
        :raises HimlError: If the workspace cannot be reached or refuses access.
        """
        return [self._provide(reference, datastore) for reference in parse_datasets(texts)]

    def _provide(self, reference: DatasetReference, datastore: str) -> Path:
        if reference.name and reference.version:
            target = self._of_version(reference.name, reference.version)
            if target.is_dir():
                logger.info("The dataset %s is in %s.", reference.text, target)
                return target
        source = self._ask(f"The dataset {reference.text} cannot be found", lambda: self._find(reference, datastore))
        if source.cache_path and (self.folder / source.cache_path).is_dir():
            logger.info("The dataset %s is in %s.", reference.text, self.folder / source.cache_path)
            return self.folder / source.cache_path
        return self._ask(
            f"The dataset {reference.text} cannot be downloaded", lambda: self._download(reference, source)
        )

    def _of_version(self, name: str, version: str) -> Path:
        return self.folder / _version_path(name, version)

    def _ask(self, doing: str, ask: Callable[[], Result]) -> Result:
        with azure_errors(doing, self._workspace):
            return ask()

    @property
    def _connected(self) -> MLClient:
        if self._client is None:
            self._client = self._connect()
        return self._client

    def _find(self, reference: DatasetReference, datastore: str) -> _Source:
        """Returns where the data are: those of a data asset, or else of the folder of that name on the datastore."""
        if reference.uri:
            return _Source("", reference.uri)
        if reference.label not in ("", LATEST):
            raise DatasetError(
                f"The label of {reference.text} is unknown: AzureML itself only keeps the label {LATEST!r}.",
                f"Write {reference.name}@{LATEST}, or {reference.name}:VERSION.",
            )
        asset = self._asset(reference)
        if asset is None:
            return _Source(
                "", folder_uri(datastore or str(self._connected.datastores.get_default().name), reference.name)
            )
        return _Source(_version_path(reference.name, str(asset.version)), str(asset.path))

    def _asset(self, reference: DatasetReference) -> Any:
        """Returns a version of a data asset, or None if there is no asset of the name and any version would do."""
        from azure.ai.ml.exceptions import MlException  # for a label, where a version raises the other one
        from azure.core.exceptions import ResourceNotFoundError

        version = reference.version or None
        try:
            return self._connected.data.get(reference.name, version=version, label=None if version else LATEST)
        except (ResourceNotFoundError, MlException) as error:
            if not version and not reference.label:
                return None
            raise self._missing(reference) from error

    def _missing(self, reference: DatasetReference) -> DatasetError:
        from azure.core.exceptions import ResourceNotFoundError

        operations = self._connected.data
        try:
            versions = sorted(str(asset.version) for asset in operations.list(name=reference.name))
        except ResourceNotFoundError:
            versions = []
        where = f"in the workspace {self._workspace.name}"
        if versions:
            return DatasetError(
                f"The data asset {reference.name} has no version {reference.version!r} {where}.",
                f"Its versions are {', '.join(versions)}.",
            )
        known = {str(asset.name) for asset in operations.list()}
        return DatasetError(
            f"There is no data asset {reference.name!r} {where}.",
            did_you_mean(reference.name, known) or listed_assets(known),
        )

    # --- downloading --------------------------------------------------------------------------------------------------

    def _download(self, reference: DatasetReference, source: _Source) -> Path:
        address = StorageAddress.parse(source.uri)
        container = open_container(self._client_for(address), address.datastore)
        files = _files(container, address.path)
        if not files:
            raise self._nothing_there(reference, address)
        target = self.folder / (source.cache_path or _folder_path(address, files))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _lock(target):
                if not target.is_dir():
                    self._fill(target, container, files, uri=source.uri, name=reference.text)
        except OSError as error:
            raise writing_error(error, target) from error
        return target

    def _client_for(self, address: StorageAddress) -> MLClient:
        """Returns a client of the workspace that the datastore is in."""
        client = self._connected
        here = client.subscription_id, client.resource_group_name, client.workspace_name
        if address.workspace is None or [part.lower() for part in address.workspace] == [str(p).lower() for p in here]:
            return client
        from azure.ai.ml import MLClient

        return MLClient(client._credential, *address.workspace, enable_telemetry=False, **TIMEOUTS)

    def _nothing_there(self, reference: DatasetReference, address: StorageAddress) -> DatasetError:
        place = f"the folder {address.path or '/'} on the datastore {address.datastore}"
        if reference.uri:
            return DatasetError(f"There is no file in {place}.", "Check the address of the dataset.")
        known = {str(asset.name) for asset in self._connected.data.list()}
        near = did_you_mean(reference.name, known)
        return DatasetError(
            f"There is neither a data asset {reference.name!r} in the workspace {self._workspace.name}, nor a file in "
            f"{place}.",
            near or f"{listed_assets(known)} --datastore names another datastore.",
        )

    def _fill(self, target: Path, container: Container, files: Mapping[str, Blob], *, uri: str, name: str) -> None:
        """Downloads files into a folder that gets its name when all of them are there."""
        partial = target.with_name(f".{target.name}.partial")
        size = sum(blob.size for blob in files.values())
        here = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        _check_space(target.parent, size - here)
        logger.info("Downloading the dataset %s to %s: %d files, %.1f MB.", name, target, len(files), size / 1e6)
        start = time.monotonic()
        with BlobDownloader(container.access) as downloader:
            downloader.fetch([RemoteFile(path, container.url(blob)) for path, blob in files.items()], partial)
        for other in [file for file in partial.rglob("*") if file.is_file()]:
            if other.relative_to(partial).as_posix() not in files:
                other.unlink()  # of an earlier attempt, when there were other files
        wrong = [path for path, blob in files.items() if (partial / path).stat().st_size != blob.size]
        if wrong:
            raise DatasetError(
                f"The dataset {name} was changed while it was downloaded: {', '.join(wrong[:5])}.",
                "Repeat the command when nobody writes to it.",
            )
        facts = {"dataset": name, "uri": uri, "files": len(files), "bytes": size, "downloaded": time.time()}
        target.with_name(f".{target.name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        partial.replace(target)
        logger.info("Downloaded the dataset %s in %.0f s.", name, time.monotonic() - start)


def _version_path(name: str, version: str) -> str:
    return f"assets/{quote(name, safe='')}/{quote(version, safe='')}"


def _folder_path(address: StorageAddress, files: Mapping[str, Blob]) -> str:
    """Returns where a copy of a folder goes: named after what is in the folder now."""
    listing = hashlib.sha256(repr(address.workspace).encode())
    for path, blob in files.items():
        listing.update(f"{path}\0{blob.size}\0{blob.version}\n".encode())
    folder = quote(address.path.strip("/"), safe="").replace(".", "%2E")[-150:] or "root"
    return f"folders/{quote(address.datastore, safe='')}/{folder}/{listing.hexdigest()[:16]}"


def _files(container: Container, path: str) -> dict[str, Blob]:
    """Returns the files of a folder by their paths in it; a path of a single file stands for a folder with it alone."""
    folder = path.rstrip("/") + "/" if path.strip("/") else ""
    found = {blob.name.removeprefix(folder): blob for blob in container.blobs(folder)}
    if found or not folder:
        return found
    name = path.rstrip("/")
    return {name.rpartition("/")[2]: blob for blob in container.blobs(name) if blob.name == name}


def _check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE_BYTES > free:
        raise DatasetError(
            f"The dataset needs {size / 1e9:.2f} GB more in {folder}, where {free / 1e9:.2f} GB are free.",
            "Free some space, set XDG_CACHE_HOME to a folder on a larger disk, or give a folder that has the data "
            "as --local_datasets.",
        )


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Waits until no other process downloads the same; the system releases the lock when its holder ends."""
    with target.with_name(f".{target.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process downloads to %s; waiting for it.", target)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
