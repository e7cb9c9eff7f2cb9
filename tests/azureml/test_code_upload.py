"""What goes to blob storage for which code, counted in requests and bytes, and what the job gets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from health_ml.azure import blob_writer
from health_ml.azure.auth import get_credential
from health_ml.azure.client import WorkspaceName, connect
from health_ml.azure.code_upload import CodeUpload, UploadReport, memory_file
from health_ml.azure.job_code import KEPT_SINGLE_FILES, JobCode, job_code, layout
from health_ml.azure.job_start import prepare
from health_ml.azure.rest import ARM_ADDRESS, Patience, RestClient
from health_ml.azure.storage import permission_for
from health_ml.errors import BackendError, SnapshotError
from health_ml.planning import file_hashes
from health_ml.planning.file_hashes import key_of
from health_ml.planning.snapshot import take_snapshot
from tests.azureml.service import AzureML

QUICK = Patience(attempts=3, pause=0.01)


@dataclass
class Sender:
    """Sends the code of a folder, and says what that took."""

    azureml: AzureML
    rest: RestClient
    client: Any
    workspace: str
    folder: Path
    cache: Path
    has_runner: bool = True
    reports: list[UploadReport] = field(default_factory=list)

    def code(self) -> JobCode:
        return job_code(take_snapshot(self.folder), self.folder, has_runner=self.has_runner)

    def send(self, code: JobCode | None = None) -> UploadReport:
        upload = CodeUpload(
            self.rest,
            self.workspace,
            memory_file=memory_file(self.cache, self.workspace, self.folder),
            source_signature=lambda address: permission_for(self.client, "workspaceblobstore", address).signature,
            patience=QUICK,
        )
        self.reports.append(upload.provide(code or self.code()))
        return self.reports[-1]

    def stored(self, report: UploadReport) -> dict[str, bytes]:
        name, version = report.code_id.split("/")[-3], report.code_id.split("/")[-1]
        container = self.azureml.state.codes[name, version]["properties"]["codeUri"].rstrip("/").rpartition("/")[2]
        return {name: self.azureml.azurite.read(container, name) for name in self.azureml.azurite.names(container, "")}

    def arrived(self, report: UploadReport, target: Path) -> dict[str, bytes]:
        """Returns the files that a job finds, after it has prepared its folder."""
        for name, content in self.stored(report).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        prepare(target)
        files = [path for path in target.rglob("*") if path.is_file()]
        found = {path.relative_to(target).as_posix(): path.read_bytes() for path in files}
        return {name: content for name, content in found.items() if not name.startswith(".himl_runner/")}

    def local(self) -> dict[str, bytes]:
        return {file.path: (self.folder / file.path).read_bytes() for file in take_snapshot(self.folder).files}


@pytest.fixture
def sender(signed_in: AzureML, tmp_path: Path) -> Iterator[Sender]:
    workspace = WorkspaceName(
        signed_in.workspace.subscription_id, signed_in.workspace.resource_group, signed_in.workspace.name
    )
    credential = get_credential(environ=signed_in.environment)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "who.txt").write_text(str(tmp_path))  # no other test has the same code
    client = connect(workspace, environ=signed_in.environment, credential=credential)
    with RestClient(ARM_ADDRESS, credential, QUICK) as rest:
        yield Sender(signed_in, rest, client, workspace.arm_id, folder, tmp_path / "cache")
    credential.close()


def test_what_is_sent_arrives(sender: Sender, tmp_path: Path) -> None:
    names = ["a.py", "sub/ünï 100%#?&+.txt", "empty.txt", "sub/sub/b.bin"]
    for number, name in enumerate(names):
        path = sender.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty.txt" else bytes(range(256)) * (number + 1))
    (sender.folder / "a.py").chmod(0o755)
    report = sender.send()
    target = tmp_path / "node"
    assert sender.arrived(report, target) == sender.local()
    assert (target / "a.py").stat().st_mode & 0o111
    assert not (target / "sub" / "sub" / "b.bin").stat().st_mode & 0o111


def test_unchanged_code_sends_nothing(sender: Sender) -> None:
    first = sender.send()
    before = len(sender.azureml.blob_requests())
    second = sender.send()
    assert second.code_id == first.code_id
    assert (second.sent_blobs, second.copied_blobs) == (0, 0)
    assert len(sender.azureml.blob_requests()) == before


@pytest.mark.parametrize("secrets", ["Sas", "AccountKey"])
def test_one_changed_file_sends_one_file(sender: Sender, tmp_path: Path, secrets: str) -> None:
    sender.azureml.cloud.secrets = secrets
    for number in range(30):
        (sender.folder / f"{number}.py").write_text(f"print({number})\n" * 100)
    sender.send()
    (sender.folder / "7.py").write_text("changed\n")
    (sender.folder / "8.py").rename(sender.folder / "renamed.py")
    report = sender.send()
    assert (report.sent_blobs, report.sent_bytes, report.copied_blobs) == (1, len("changed\n"), 31)
    assert sender.arrived(report, tmp_path / "node") == sender.local()


def test_the_version_before_keeps_its_files(sender: Sender) -> None:
    (sender.folder / "a.py").write_text("first")
    first = sender.send()
    before = sender.stored(first)
    (sender.folder / "a.py").write_text("second")
    second = sender.send()
    assert first.code_id != second.code_id
    assert sender.stored(first) == before
    assert sender.stored(second)["a.py"] == b"second"


def test_where_the_version_before_is_gone_everything_is_sent(sender: Sender) -> None:
    for number in range(5):
        (sender.folder / f"{number}.py").write_text(str(number))
    sender.send()
    sender.azureml.misbehave("PUT", "*.blob.core.windows.net/*/0.py*", status=404)
    (sender.folder / "4.py").write_text("changed")
    report = sender.send()
    assert (report.sent_blobs, report.copied_blobs) == (2, 5)
    memory = memory_file(sender.cache, sender.workspace, sender.folder)
    memory.write_text("damaged")
    (sender.folder / "4.py").write_text("changed again")
    assert sender.send().copied_blobs == 0


def test_thousands_of_files_need_few_requests(sender: Sender, tmp_path: Path) -> None:
    for number in range(3000):
        folder = sender.folder / f"part_{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.csv").write_text(f"{number}\n")
    (sender.folder / "train.py").write_text("print()\n")
    report = sender.send()
    assert report.sent_blobs <= KEPT_SINGLE_FILES + 8
    stored = sender.stored(report)
    assert stored["train.py"] == b"print()\n", "what a person reads stays a file"
    assert sender.arrived(report, tmp_path / "node") == sender.local()
    packed = next(blob for blob in layout(sender.code()) if blob.is_pack).members[0]
    (sender.folder / packed.path).write_text("changed\n")
    again = sender.send()
    assert again.sent_blobs == 1, "the one archive that holds the file"
    assert again.sent_bytes < 200_000
    assert sender.arrived(again, tmp_path / "again") == sender.local()


def test_a_large_file_is_sent_in_blocks_and_copied_next_time(sender: Sender) -> None:
    content = bytes(range(256)) * 4096 * 21  # 21 MiB
    (sender.folder / "large.bin").write_bytes(content)
    report = sender.send()
    assert sender.stored(report)["large.bin"] == content
    (sender.folder / "a.py").write_text("new")
    assert sender.send().sent_bytes == 3


def test_a_file_that_changes_meanwhile_is_noticed(sender: Sender) -> None:
    (sender.folder / "a.py").write_text("before")
    (sender.folder / "large.bin").write_bytes(b"x" * (9 << 20))
    for name in ("a.py", "large.bin"):
        code = sender.code()
        (sender.folder / name).write_bytes(b"y" * (9 << 20))
        with pytest.raises(SnapshotError, match=f"{name} was changed while the job was submitted"):
            sender.send(code)
    assert sender.azureml.received("PUT", "*/codes/*") == []


def known_code(sender: Sender) -> JobCode:
    """Returns the code of the folder after its hashes were remembered."""
    time.sleep(2 * file_hashes.FINE_CLOCK_MARGIN_NS / 1e9)
    snapshot = take_snapshot(sender.folder, cache_folder=sender.cache)
    return job_code(snapshot, sender.folder, has_runner=True, cache_folder=sender.cache)


def test_a_large_file_whose_hash_is_remembered_is_not_hashed_again(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = sender.folder / "large.bin"
    large.write_bytes(b"x" * (9 << 20))
    code = known_code(sender)
    facts = large.stat()
    large.write_bytes(b"y" * (9 << 20))
    with pytest.raises(SnapshotError, match=r"large\.bin was changed while the job was submitted"):
        sender.send(code)
    # Only a file with the very same times passes: this is how the test can tell that nothing was hashed.
    monkeypatch.setattr(blob_writer, "key_of", lambda _: key_of(facts))
    assert sender.stored(sender.send(code))["large.bin"] == b"y" * (9 << 20)


def test_a_large_file_that_changes_while_it_is_read_is_noticed(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    large = sender.folder / "large.bin"
    large.write_bytes(b"x" * (20 << 20))
    code = known_code(sender)
    put = blob_writer.BlobWriter._put_block

    def change_and_put(writer: blob_writer.BlobWriter, name: str, block: str, content: bytes) -> None:
        with large.open("r+b") as stream:
            stream.write(b"y")
        put(writer, name, block, content)

    monkeypatch.setattr(blob_writer.BlobWriter, "_put_block", change_and_put)
    monkeypatch.setattr(blob_writer, "WORKERS", 1)
    with pytest.raises(SnapshotError, match=r"large\.bin was changed while the job was submitted"):
        sender.send(code)


def test_a_refused_upload_registers_nothing(sender: Sender) -> None:
    for number in range(50):
        (sender.folder / f"{number}.py").write_text(str(number))
    sender.azureml.misbehave("PUT", "*.blob.core.windows.net/*", status=403, times=-1)
    with pytest.raises(BackendError, match="with status 403"):
        sender.send()
    sender.azureml.cloud.misbehaviour.troubles.clear()
    assert sender.azureml.received("PUT", "*/codes/*") == []
    assert sender.send().sent_blobs == 52


def test_the_same_code_from_several_places_at_once(sender: Sender) -> None:
    (sender.folder / "a.py").write_text("shared")
    failures: list[BaseException] = []

    def send() -> None:
        try:
            sender.send()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(sender.reports) == 4
    for report in sender.reports:
        assert sender.stored(report)["a.py"] == b"shared"


def test_the_source_of_the_runner_travels_as_one_file(sender: Sender, tmp_path: Path) -> None:
    import health_ml

    sender.has_runner = False
    package = Path(health_ml.__file__).parent
    report = sender.send()
    assert report.sent_blobs == 3, "the user's file, the start of the job, and the runner"
    target = tmp_path / "node"
    sender.arrived(report, target)
    found = {path.relative_to(target / ".himl_runner/health_ml") for path in target.rglob("health_ml/**/*.py")}
    assert found == {path.relative_to(package) for path in package.rglob("*.py")}
