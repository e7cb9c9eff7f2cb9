"""Azurite, Microsoft's own emulator of blob storage, as a process of its own; installed by npm on first use."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.azureml.certificates import Certificates

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

FOLDER = Path(__file__).parent
NODE_MODULES = FOLDER / "node_modules"
STAMP = NODE_MODULES / ".installed"
MAIN = NODE_MODULES / "azurite" / "dist" / "src" / "blob" / "main.js"
INSTALL_SECONDS = 240
START_SECONDS = 30
LISTENS = re.compile(r"successfully listens on https?://127\.0\.0\.1:(\d+)")
ACCESS = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d+)')


class AzuriteMissingError(Exception):
    """Azurite cannot be had on this machine, with the reason."""


@dataclass(frozen=True)
class BlobRequest:
    """One request that a client made to blob storage."""

    method: str
    path: str
    query: str
    status: int


def _lock_hash() -> str:
    return hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Lets one test process install while the others wait."""
    with (FOLDER / "package-lock.json").open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install_azurite() -> None:
    """Makes sure that the locked version of Azurite is installed.

    :raises AzuriteMissingError: If node or npm is not there, or if npm cannot install.
    """
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        raise AzuriteMissingError(f"{' and '.join(missing)} not found: Azurite, which stores the blobs, needs Node.js.")
    with _one_at_a_time():
        if STAMP.is_file() and STAMP.read_text() == _lock_hash():
            return
        command = ["npm", "ci", "--omit=dev", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]
        try:
            done = subprocess.run(
                command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise AzuriteMissingError(f"{' '.join(command)} took more than {INSTALL_SECONDS} seconds.") from error
        if done.returncode != 0:
            raise AzuriteMissingError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
        STAMP.write_text(_lock_hash())


class Azurite:
    """One running Azurite that keeps everything in memory.

    :param account: Name of the storage account.
    :param key: Key of the account, base64.
    """

    def __init__(self, folder: Path, certificates: Certificates, *, account: str, key: str) -> None:
        self.account = account
        self.key = key
        self.port = 0
        self.authority = certificates.authority
        self._certificates = certificates
        self._log = folder / "azurite.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, proxy: str) -> None:
        """Starts the process; :meth:`wait` waits until it listens.

        :param proxy: Address of the proxy through which Azurite finds itself: to check a copy between blobs, it asks
            for the source under the name that the client gave.
        """
        command = ["node", str(MAIN), "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence",
                   "--disableTelemetry", "--oauth", "basic",
                   "--cert", str(self._certificates.chain), "--key", str(self._certificates.key)]  # fmt: skip
        variables = {
            **os.environ,
            "AZURITE_ACCOUNTS": f"{self.account}:{self.key}",
            "HTTPS_PROXY": proxy,
            "NO_PROXY": "",
            "no_proxy": "",
            "NODE_EXTRA_CA_CERTS": str(self.authority),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=variables
            )

    def wait(self) -> None:
        """Waits until Azurite listens and has told its port."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            match = LISTENS.search(self._log.read_text())
            if match:
                self.port = int(match[1])
                return
            time.sleep(0.02)
        raise RuntimeError(f"Azurite does not start: {self._log.read_text()[-1000:]}")

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @cached_property
    def service(self) -> BlobServiceClient:
        """A client of the whole account that goes to Azurite directly."""
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(
            f"https://127.0.0.1:{self.port}/{self.account}",
            credential=self.key,
            connection_verify=str(self.authority),
            use_env_settings=False,
        )

    def make_container(self, name: str) -> None:
        """Creates a container."""
        self.service.create_container(name)

    def names(self, container: str, prefix: str = "") -> list[str]:
        """Returns the sorted names of the blobs below a prefix."""
        found = self.service.get_container_client(container).list_blob_names(name_starts_with=prefix)
        return sorted(found)

    def read(self, container: str, name: str) -> bytes:
        """Returns the content of a blob."""
        content: bytes = self.service.get_blob_client(container, name).download_blob().readall()
        return content

    def write(self, container: str, name: str, content: bytes) -> None:
        """Writes a blob, also over an older one."""
        self.service.get_blob_client(container, name).upload_blob(content, overwrite=True)

    def has(self, container: str, name: str) -> bool:
        """Returns True if the blob is there."""
        return bool(self.service.get_blob_client(container, name).exists())

    def signature(self, container: str, name: str = "", *, permission: str = "racwdl") -> str:
        """Returns a shared access signature for a container, or for one blob in it."""
        from azure.storage.blob import generate_blob_sas, generate_container_sas

        now = datetime.now(timezone.utc)
        start, expiry = now - timedelta(minutes=5), now + timedelta(hours=8)
        if name:
            text = generate_blob_sas(self.account, container, name, account_key=self.key,
                                     permission=permission, start=start, expiry=expiry)  # fmt: skip
        else:
            text = generate_container_sas(self.account, container, account_key=self.key,
                                          permission=permission, start=start, expiry=expiry)  # fmt: skip
        return str(text)

    def account_signature(self) -> str:
        """Returns a shared access signature for all containers of the account, as ``listSecrets`` hands out."""
        from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

        now = datetime.now(timezone.utc)
        permission = AccountSasPermissions(read=True, write=True, delete=True, list=True, create=True, update=True)
        return str(
            generate_account_sas(self.account, self.key, ResourceTypes(container=True, object=True), permission,
                                 now + timedelta(hours=1), start=now - timedelta(minutes=5))
        )  # fmt: skip

    def requests(self) -> list[BlobRequest]:
        """Returns what clients asked for so far, from Azurite's access log; the stand-in's own requests are not in.

        Clients say the account in the host name, the stand-in says it in the path.
        """
        found = []
        for method, target, status in ACCESS.findall(self._log.read_text()):
            parts = urlsplit(target)
            path = unquote(parts.path)
            if path.split("/")[1] != self.account:
                found.append(BlobRequest(method, path, parts.query, int(status)))
        return found
