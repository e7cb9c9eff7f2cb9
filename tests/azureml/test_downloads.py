"""Files of runs are downloaded from the stand-in: checked, in parallel, and continued where an earlier call stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure.downloads import download_files
from health_ml.azure.history import RunHistory
from health_ml.azure.rest import Patience, ServiceError
from health_ml.azure.transfer import BlobDownloader, RemoteFile
from health_ml.errors import OutputError, RunNotFoundError
from tests.azureml.service import AzureML
from tests.azureml.state import ARTIFACT_CONTAINER, Job

SWEEP_BODY = {
    "jobType": "Sweep",
    "searchSpace": {},
    "samplingAlgorithm": {"samplingAlgorithmType": "Grid"},
    "objective": {"primaryMetric": "loss", "goal": "Minimize"},
    "trial": {},
}
QUICK = Patience(attempts=3, pause=0.05, longest_pause=0.2, connect_seconds=5, read_seconds=5)


def add_job(azureml: AzureML, name: str, files: dict[str, bytes], **facts: Any) -> Job:
    """Returns a job that has ended and left the files."""
    body = {"jobType": "Command", "experimentName": "tests", **facts.pop("body", {})}
    job = Job(name, body, status=facts.pop("status", "Completed"), **facts)
    azureml.state.jobs[name] = job
    for path, content in files.items():
        azureml.azurite.write(ARTIFACT_CONTAINER, job.artifact_prefix + path, content)
    return job


def url_of(azureml: AzureML, name: str) -> str:
    signature = azureml.azurite.signature(ARTIFACT_CONTAINER, name, permission="r")
    return f"{azureml.workspace.blob_address}/{ARTIFACT_CONTAINER}/{name}?{signature}"


def reads_of(azureml: AzureML, text: str, *, count: int) -> list[str]:
    """Returns the names of the blobs that were read, once Azurite has written that many to its log."""
    deadline = time.monotonic() + 5
    while True:
        paths = [request.path for request in azureml.blob_requests("GET") if text in request.path]
        if len(paths) >= count or time.monotonic() > deadline:
            return [path.rpartition("/")[2] for path in paths]
        time.sleep(0.05)


def test_a_pattern_is_about_paths_in_the_run_or_in_its_outputs(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    files = {
        "outputs/checkpoints/last.ckpt": b"first",
        "outputs/checkpoints/best.ckpt": b"best",
        "outputs/retry_001/checkpoints/last.ckpt": b"second",
        "outputs/empty.txt": b"",
        "user_logs/std_log.txt": b"log",
    }
    add_job(azureml, "patterns", files)
    add_job(azureml, "patterns_2", {"outputs/checkpoints/last.ckpt": b"of another run"})

    def download(pattern: str) -> dict[str, bytes]:
        target = tmp_path / pattern.replace("/", "_").replace("*", "all")
        found = download_files(client, "patterns", pattern, target)
        return {path.relative_to(target).as_posix(): path.read_bytes() for path in found}

    assert download("*") == files
    assert download("user_logs/*") == {"user_logs/std_log.txt": b"log"}
    assert download("checkpoints/*.ckpt") == {"checkpoints/last.ckpt": b"second", "checkpoints/best.ckpt": b"best"}
    assert download("outputs/checkpoints/last.ckpt") == {"outputs/checkpoints/last.ckpt": b"first"}
    assert download("nothing/*") == {}


def test_each_trial_of_a_sweep_has_a_folder_of_its_own(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    azureml.cloud.page_size = 2
    names = [f"sweep_{index}" for index in range(3)]
    sweep = add_job(azureml, "sweep", {"outputs/parent.txt": b"parent"}, body=SWEEP_BODY)
    sweep.children = names
    for name in names:
        add_job(azureml, name, {"outputs/value.txt": name.encode()}, parent="sweep")
    found = download_files(client, "sweep", "outputs/*", tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): path.read_text() for path in found} == {
        "outputs/parent.txt": "parent",
        **{f"{name}/outputs/value.txt": name for name in names},
    }


def test_what_is_here_is_not_downloaded_again_unless_it_has_changed(
    azureml: AzureML, client: Any, tmp_path: Path
) -> None:
    job = add_job(azureml, "again", {f"outputs/{index}.txt": b"x" * index for index in range(5)})
    download_files(client, "again", "outputs/*", tmp_path)
    azureml.azurite.write(ARTIFACT_CONTAINER, f"{job.artifact_prefix}outputs/3.txt", b"new")
    (tmp_path / "outputs" / "4.txt").write_bytes(b"damaged, but not short")
    download_files(client, "again", "outputs/*", tmp_path)
    assert (tmp_path / "outputs" / "3.txt").read_bytes() == b"new"
    assert (tmp_path / "outputs" / "4.txt").read_bytes() == b"xxxx"
    reads = reads_of(azureml, "dcid.again/", count=7)
    assert {name: reads.count(name) for name in set(reads)} == {
        "0.txt": 1,
        "1.txt": 1,
        "2.txt": 1,
        "3.txt": 2,
        "4.txt": 2,
    }


def test_a_large_file_continues_where_it_stopped(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    azureml.azurite.write(ARTIFACT_CONTAINER, "large.bin", content)
    file = RemoteFile("folder/large.bin", url_of(azureml, "large.bin"))
    with BlobDownloader(patience=QUICK, piece_bytes=16_000) as downloader:
        _fail_after(downloader, tmp_path / "folder" / ".large.bin.pieces", pieces=6)
        with pytest.raises(ServiceError, match="gave up on purpose"):
            downloader.fetch([file], tmp_path)
    assert not (tmp_path / "folder" / "large.bin").exists()
    with BlobDownloader(patience=QUICK, piece_bytes=16_000) as downloader:
        (path,) = downloader.fetch([file], tmp_path)
    assert path.read_bytes() == content
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["large.bin"]
    assert len(reads_of(azureml, "large.bin", count=16)) == 16, "each of the 16 pieces was read once"


def _fail_after(downloader: BlobDownloader, journal: Path, *, pieces: int) -> None:
    """Lets the download fail when the first pieces are stored."""
    read = downloader.read

    def limited(url: str, start: int, *, version: str = "") -> Any:
        if start >= pieces * downloader.piece_bytes:
            deadline = time.monotonic() + 20
            while len(journal.read_text().splitlines()) <= pieces and time.monotonic() < deadline:
                time.sleep(0.01)
            raise ServiceError("gave up on purpose")
        return read(url, start, version=version)

    downloader.read = limited  # type: ignore[method-assign]


def test_a_file_that_changes_on_the_way_is_not_mixed(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    azureml.azurite.write(ARTIFACT_CONTAINER, "changing.bin", b"old " * 1000)
    file = RemoteFile("changing.bin", url_of(azureml, "changing.bin"))
    with BlobDownloader(patience=QUICK, piece_bytes=1000) as downloader:
        _fail_after(downloader, tmp_path / ".changing.bin.pieces", pieces=2)
        with pytest.raises(ServiceError, match="gave up on purpose"):
            downloader.fetch([file], tmp_path)
    azureml.azurite.write(ARTIFACT_CONTAINER, "changing.bin", b"new " * 1000)
    with BlobDownloader(patience=QUICK, piece_bytes=1000) as downloader:
        (path,) = downloader.fetch([file], tmp_path)
    assert path.read_bytes() == b"new " * 1000


@pytest.mark.parametrize("trouble", [{"status": 503}, {"status": 429, "retry_after": 0.1}, {"close": True}])
def test_a_download_survives_a_service_that_stumbles(
    azureml: AzureML, client: Any, tmp_path: Path, trouble: dict[str, Any]
) -> None:
    add_job(azureml, "stumble", {f"outputs/{index}.txt": b"x" * index for index in range(20)})
    met = [
        azureml.misbehave("*", "*.blob.core.windows.net/*", times=3, **trouble),
        azureml.misbehave("GET", "*/runs/stumble", times=2, **trouble),
        azureml.misbehave("GET", "*/artifacts/prefix/contentinfo", times=2, **trouble),
    ]
    found = download_files(client, "stumble", "outputs/*", tmp_path)
    assert [path.stat().st_size for path in sorted(found, key=lambda path: int(path.stem))] == list(range(20))
    assert [rule.met for rule in met] == [3, 2, 2]


def test_a_blob_store_that_stays_down_is_an_error_that_names_the_file(
    azureml: AzureML, client: Any, tmp_path: Path
) -> None:
    azureml.azurite.write(ARTIFACT_CONTAINER, "down.bin", b"content")
    azureml.misbehave("*", "*.blob.core.windows.net/*", times=-1, status=503)
    told = r"down\.bin failed 3 times in a row: 503"
    with BlobDownloader(patience=QUICK) as downloader, pytest.raises(ServiceError, match=told) as caught:
        downloader.fetch([RemoteFile("down.bin", url_of(azureml, "down.bin"))], tmp_path)
    assert "sig=" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    from azure.storage.blob import ContentSettings

    azureml.azurite.write(ARTIFACT_CONTAINER, "sum.bin", b"content")
    blob = azureml.azurite.service.get_blob_client(ARTIFACT_CONTAINER, "sum.bin")
    blob.set_http_headers(ContentSettings(content_md5=bytearray(b"0123456789abcdef")))
    file = RemoteFile("sum.bin", url_of(azureml, "sum.bin"))
    told = "is damaged: its size or its checksum is wrong"
    for piece_bytes in (1000, 3):
        downloader = BlobDownloader(patience=QUICK, piece_bytes=piece_bytes)
        with downloader, pytest.raises(ServiceError, match=told):
            downloader.fetch([file], tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_names_that_lead_elsewhere_are_refused(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    file = RemoteFile("../outside.txt", url_of(azureml, "any"))
    with BlobDownloader(patience=QUICK) as downloader, pytest.raises(OutputError, match="is no path below"):
        downloader.fetch([file], tmp_path)


def test_a_run_that_does_not_exist(azureml: AzureML, client: Any, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="workspace stand-in has no run 'no_such_run'"):
        download_files(client, "no_such_run", "*", tmp_path)


def test_a_job_reads_its_own_files_with_the_token_that_it_got(azureml: AzureML, client: Any) -> None:
    workspace = azureml.workspace
    add_job(azureml, "inside", {"outputs/a.txt": b"a"})
    environ = {
        "AZUREML_SERVICE_ENDPOINT": workspace.data_plane,
        "AZUREML_RUN_TOKEN": azureml.token("https://ml.azure.com"),
        "AZUREML_ARM_SUBSCRIPTION": workspace.subscription_id,
        "AZUREML_ARM_RESOURCEGROUP": workspace.resource_group,
        "AZUREML_ARM_WORKSPACE_NAME": workspace.name,
    }
    history = RunHistory.of_job(environ)
    assert history is not None
    with history:
        run = history.run("inside")
        assert [artifact.path for artifact in history.artifacts(run)] == ["outputs/a.txt"]
        history.update(run, display_name="another name")
    assert azureml.state.jobs["inside"].body["displayName"] == "another name"
    assert RunHistory.of_job({name: value for name, value in environ.items() if "TOKEN" not in name}) is None
