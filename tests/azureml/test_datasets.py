"""Datasets of the workspace are downloaded to this machine, once, completely, and for all processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.client import WorkspaceName
from health_ml.azure.datasets import DatasetCache, dataset_cache_folder
from health_ml.azure.rest import ServiceError
from health_ml.errors import DatasetError
from health_ml.testing import invoke
from tests.azureml.service import AzureML

FILES = {"a.txt": b"alpha", "sub folder/b+ü.txt": b"beta" * 1000, "empty.bin": b""}


@pytest.fixture
def workspace(azureml: AzureML) -> WorkspaceName:
    return WorkspaceName(azureml.workspace.subscription_id, azureml.workspace.resource_group, azureml.workspace.name)


@pytest.fixture
def cache(client: Any, workspace: WorkspaceName, tmp_path: Path) -> DatasetCache:
    return DatasetCache(tmp_path / "cache", workspace, lambda: client)


@pytest.fixture
def upload(azureml: AzureML, client: Any) -> Callable[..., None]:
    """Returns a function that makes a folder on the default datastore, and a data asset of it."""
    from azure.ai.ml.entities import Data

    def make(name: str, version: str, files: dict[str, bytes] = FILES, *, kind: str = "uri_folder") -> None:
        folder = f"uploads/{name}/{version}"
        for path, content in files.items():
            azureml.azurite.write(azureml.workspace.default_container, f"{folder}/{path}", content)
        uri = f"azureml://datastores/workspaceblobstore/paths/{folder}"
        uri += f"/{next(iter(files))}" if kind == "uri_file" else ""
        client.data.create_or_update(Data(name=name, version=version, path=uri, type=kind))

    return make


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("secrets", ["Sas", "AccountKey", "None"])
def test_a_version_of_a_data_asset_is_downloaded_once(
    azureml: AzureML, cache: DatasetCache, upload: Callable[..., None], secrets: str
) -> None:
    azureml.cloud.secrets = secrets
    name = f"letters_{secrets}"
    upload(name, "1")
    upload(name, "10", {"a.txt": b"of another version"})
    (folder,) = cache.provide([f"{name}:1"])
    assert content_of(folder) == FILES
    seen = len(azureml.received())
    assert cache.provide([f"{name}:1"]) == [folder]
    assert len(azureml.received()) == seen, "what is complete needs no network"
    assert content_of(cache.provide([f"azureml:{name}:10"])[0]) == {"a.txt": b"of another version"}


def test_nobody_is_asked_for_credentials_for_what_is_here(
    cache: DatasetCache, upload: Callable[..., None], workspace: WorkspaceName, tmp_path: Path
) -> None:
    upload("offline", "1")
    folders = cache.provide(["offline:1"])

    def refuse() -> Any:
        raise AssertionError("asked for credentials")

    assert DatasetCache(tmp_path / "cache", workspace, refuse).provide(["offline:1"]) == folders


def test_the_latest_version_is_asked_for_every_time(cache: DatasetCache, upload: Callable[..., None]) -> None:
    upload("growing", "1", {"a.txt": b"one"})
    first = cache.provide(["growing", "growing@latest"])
    upload("growing", "2", {"a.txt": b"two"})
    second = cache.provide(["growing", "growing@latest", "growing:1"])
    assert [content_of(folder)["a.txt"] for folder in (*first, *second)] == [b"one", b"one", b"two", b"two", b"one"]


def test_a_single_file_is_a_folder_with_that_file(cache: DatasetCache, upload: Callable[..., None]) -> None:
    upload("table", "1", {"data.csv": b"1,2", "data.csv.backup": b"old"}, kind="uri_file")
    assert content_of(cache.provide(["table:1"])[0]) == {"data.csv": b"1,2"}


def test_folders_are_copied_anew_when_they_change(azureml: AzureML, cache: DatasetCache) -> None:
    container = azureml.workspace.default_container
    azureml.azurite.write(container, "plain/a.txt", b"one")
    azureml.azurite.write(container, "plainer/a.txt", b"of another folder")
    (first,) = cache.provide(["plain"])
    assert cache.provide(["azureml://datastores/workspaceblobstore/paths/plain/"]) == [first]
    assert content_of(first) == {"a.txt": b"one"}
    azureml.azurite.write(container, "plain/b.txt", b"two")
    (second,) = cache.provide(["plain"], datastore="workspaceblobstore")
    assert content_of(second) == {"a.txt": b"one", "b.txt": b"two"}
    assert content_of(first) == {"a.txt": b"one"}, "a training that still reads the former copy is not disturbed"


def test_blobs_that_stand_for_folders_are_no_files(azureml: AzureML, cache: DatasetCache) -> None:
    container = azureml.workspace.default_container
    for name, content in {"marked/": b"", "marked/sub/": b"", "marked/sub/a.txt": b"one"}.items():
        azureml.azurite.write(container, name, content)
    assert content_of(cache.provide(["marked"])[0]) == {"sub/a.txt": b"one"}


def test_an_interrupted_download_continues(azureml: AzureML, cache: DatasetCache, upload: Callable[..., None]) -> None:
    files = {f"{index:02}.bin": bytes([index]) * 1000 for index in range(40)}
    upload("interrupted", "1", files)
    trouble = azureml.misbehave("GET", "*.blob.core.windows.net/*/uploads/interrupted/1/39.bin", times=-1, status=404)
    with pytest.raises(ServiceError, match=r"39\.bin") as caught:
        cache.provide(["interrupted:1"])
    assert "sig=" not in str(caught.value)
    assert not (cache.folder / "assets" / "interrupted" / "1").exists()
    azureml.cloud.misbehaviour.troubles.remove(trouble)
    (cache.folder / "assets" / "interrupted" / ".1.partial" / "of another version.bin").write_bytes(b"x")
    (folder,) = cache.provide(["interrupted:1"])
    assert content_of(folder) == files
    facts = json.loads((folder.parent / ".1.json").read_text())
    assert (facts["files"], facts["bytes"]) == (40, 40_000)


def test_processes_that_need_the_same_dataset_share_one_download(
    azureml: AzureML, client: Any, cache: DatasetCache, upload: Callable[..., None], workspace: WorkspaceName
) -> None:
    upload("shared", "1", {f"{index}.bin": b"x" * 100 for index in range(30)})
    found: list[Path] = []
    caches = [DatasetCache(cache.folder.parent, workspace, lambda: client) for _ in range(4)]
    threads = [threading.Thread(target=lambda one=one: found.extend(one.provide(["shared:1"]))) for one in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [found[0]] * 4
    assert len(content_of(found[0])) == 30
    reads = [request for request in azureml.blob_requests("GET") if "/uploads/shared/" in request.path]
    assert len(reads) <= 30


def test_a_signature_that_ends_is_replaced(azureml: AzureML, cache: DatasetCache, upload: Callable[..., None]) -> None:
    upload("renewed", "1", {"a.txt": b"alpha"})
    trouble = azureml.misbehave("GET", "*.blob.core.windows.net/*/uploads/renewed/*", times=1, status=403)
    assert content_of(cache.provide(["renewed:1"])[0]) == {"a.txt": b"alpha"}
    assert trouble.met == 1


def test_what_does_not_exist_is_named_with_what_does(
    azureml: AzureML, cache: DatasetCache, upload: Callable[..., None]
) -> None:
    azureml.state.data.clear()
    with pytest.raises(
        DatasetError, match=r"no data asset 'letters'.*has no data assets yet; az ml data create --name"
    ):
        cache.provide(["letters:1"])
    upload("present", "1")
    upload("present", "2")
    with pytest.raises(DatasetError, match=r"present has no version '3'.*Its versions are 1, 2"):
        cache.provide(["present:3"])
    with pytest.raises(DatasetError, match=r"no data asset 'presemt'.*Did you mean 'present'"):
        cache.provide(["presemt@latest"])
    with pytest.raises(DatasetError, match=r"no data asset 'letters'.*The data assets are present\."):
        cache.provide(["letters:1"])
    with pytest.raises(DatasetError, match=r"neither a data asset 'presnt'.*nor a file in.*presnt/.*'present'"):
        cache.provide(["presnt"])
    with pytest.raises(DatasetError, match=r"no datastore 'blobs'.*workspaceartifactstore, workspaceblobstore"):
        cache.provide(["azureml://datastores/blobs/paths/a"])
    with pytest.raises(DatasetError, match=r"no file in the folder nothing on the datastore workspaceblobstore"):
        cache.provide(["azureml://datastores/workspaceblobstore/paths/nothing"])
    with pytest.raises(DatasetError, match="The label of present@stable is unknown"):
        cache.provide(["present@stable"])


def test_the_disk_is_checked_first(
    cache: DatasetCache, upload: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload("big", "1")
    monkeypatch.setattr("health_ml.azure.datasets._SPARE_BYTES", 1 << 60)
    with pytest.raises(DatasetError, match=r"needs 0\.00 GB more in .* GB are free.*XDG_CACHE_HOME"):
        cache.provide(["big:1"])


def test_the_cache_is_in_the_cache_folder_of_the_user() -> None:
    assert dataset_cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/health_ml/datasets")
    assert dataset_cache_folder({"HOME": "/home/me"}) == Path("/home/me/.cache/health_ml/datasets")


READER = """
from pathlib import Path
from health_ml.configs.hello_world import HelloWorld

class Reader(HelloWorld):
    def setup(self):
        for folder in self.local_datasets:
            print("data", *sorted(path.name for path in Path(folder).iterdir()))
"""


def test_a_training_reads_datasets_of_the_workspace(
    azureml: AzureML, upload: Callable[..., None], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload("first_data", "1", {"a.txt": b"a"})
    upload("second_data", "7", {"b.txt": b"b"})
    (project / "reader.py").write_text(READER)
    flags = ["--model=reader.Reader", "--max_epochs=1", "--max_num_gpus=0", "--tracking_uri=none"]
    done = invoke([*flags, "--azure_datasets=first_data,second_data:7", "--auth=environment"])
    assert done.exit_code == 0, done.stderr
    assert "data a.txt\ndata b.txt\n" in done.stdout
    (run,) = (project / "outputs").iterdir()
    missing = invoke([*flags, "--azure_datasets=no_such_data:1"])
    assert (missing.exit_code, "There is no data asset 'no_such_data'" in missing.stderr) == (2, True)
    (project / "config.json").unlink()
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    refused = invoke([*flags, "--azure_datasets=first_data"])
    assert refused.exit_code == 2
    assert list((project / "outputs").iterdir()) == [run]
    assert "The datasets first_data are in AzureML. No AzureML workspace is named" in refused.stderr
    assert "--local_datasets=FOLDER" in refused.stderr
    seen = len(azureml.received())
    local = invoke([*flags, "--azure_datasets=first_data", f"--local_datasets={project}"])
    assert local.exit_code == 0, local.stderr
    assert len(azureml.received()) == seen, "nobody is asked about a folder on this machine"
