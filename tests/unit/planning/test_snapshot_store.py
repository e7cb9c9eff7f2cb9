from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from health_ml.errors import OutputError, SnapshotError
from health_ml.planning import snapshot_store
from health_ml.planning.snapshot import Snapshot, take_snapshot
from health_ml.planning.snapshot_store import SnapshotStore


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "package/sub").mkdir(parents=True)
    (folder / "package/module.py").write_text("print('original')\n")
    (folder / "package/sub/copy.py").write_text("print('original')\n")
    (folder / "empty").write_text("")
    (folder / "new\nline").write_text("x")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("package")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "store")


def blobs(store: SnapshotStore) -> list[Path]:
    return sorted(path for path in (store.folder / "blobs").rglob("*") if path.is_file())


def damage(blob: Path, content: bytes) -> None:
    blob.chmod(0o600)
    blob.write_bytes(content)


def test_what_comes_out_is_what_went_in(tree: Path, store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = take_snapshot(tree)
    assert store.store(snapshot, tree) == 4  # equal contents are stored once
    store.materialise(snapshot, tmp_path / "jobs/one")
    assert take_snapshot(tmp_path / "jobs/one") == snapshot
    assert not (tmp_path / "jobs/one/link").is_symlink()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["one"]


def test_unchanged_tree_is_not_copied_again_and_one_change_copies_one_file(tree: Path, store: SnapshotStore) -> None:
    store.store(take_snapshot(tree), tree)
    before = {blob: blob.stat().st_ino for blob in blobs(store)}
    assert store.store(take_snapshot(tree), tree) == 0
    (tree / "run.sh").write_text("#!/bin/bash\n")
    assert store.store(take_snapshot(tree), tree) == 1
    assert before.items() < {blob: blob.stat().st_ino for blob in blobs(store)}.items()


def test_later_edits_do_not_reach_what_runs(tree: Path, store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    with (tree / "package/module.py").open("r+") as stream:  # in place, as some editors do
        stream.write("print('changed!')")
    (tree / "run.sh").unlink()
    store.materialise(snapshot, tmp_path / "job")
    assert (tmp_path / "job/package/module.py").read_text() == "print('original')\n"
    assert os.access(tmp_path / "job/run.sh", os.X_OK)


def test_what_a_job_writes_does_not_reach_the_store(tree: Path, store: SnapshotStore, tmp_path: Path) -> None:
    (tree / "large.bin").write_bytes(b"x" * 300_000)
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    store.materialise(snapshot, tmp_path / "one")
    for file in (tmp_path / "one").rglob("*"):
        if file.is_file():
            with file.open("r+b") as stream:
                stream.write(b"damaged")
    store.materialise(snapshot, tmp_path / "two")
    assert take_snapshot(tmp_path / "two") == snapshot


def test_blobs_are_read_only(tree: Path, store: SnapshotStore) -> None:
    store.store(take_snapshot(tree), tree)
    assert {blob.stat().st_mode & 0o777 for blob in blobs(store)} == {0o444}


def test_stored_snapshot_is_found_by_its_hash(tree: Path, store: SnapshotStore) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    assert store.load(snapshot.content_hash) == snapshot


def test_unknown_snapshot_is_an_error(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotError, match=r"The snapshot abc is not in .*store"):
        store.load("abc")


def test_the_name_of_a_snapshot_leads_nowhere_else(tree: Path, store: SnapshotStore) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    manifest = next((store.folder / "manifests").iterdir())
    (store.folder / "elsewhere.json").write_bytes(manifest.read_bytes())
    with pytest.raises(SnapshotError, match=r"The snapshot \.\./elsewhere is not in"):
        store.load("../elsewhere")
    manifest.rename(manifest.with_name(f"{'0' * 64}.json"))
    with pytest.raises(SnapshotError, match="is damaged"):
        store.load("0" * 64)


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_damaged_manifest_is_an_error(tree: Path, store: SnapshotStore, text: str) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    next((store.folder / "manifests").iterdir()).write_text(text)
    with pytest.raises(SnapshotError, match=r"is damaged.*Submit the job again"):
        store.load(snapshot.content_hash)


def test_files_that_changed_after_the_snapshot_are_listed(tree: Path, store: SnapshotStore) -> None:
    snapshot = take_snapshot(tree)
    (tree / "run.sh").write_text("#!/bin/sx\n")
    (tree / "empty").unlink()
    with pytest.raises(SnapshotError, match=r"changed while the job was submitted:\s+empty\s+run\.sh\s"):
        store.store(snapshot, tree)
    assert list((store.folder / "tmp").iterdir()) == []
    assert list((store.folder / "manifests").iterdir()) == []
    again = take_snapshot(tree)
    assert store.store(again, tree) == 1  # the rest was stored by the first attempt


@pytest.mark.parametrize("content", [b"", b"print('or1ginal')\n"])
def test_damaged_blob_is_noticed_and_the_next_submission_repairs_it(
    tree: Path, store: SnapshotStore, tmp_path: Path, content: bytes
) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    damage(next(blob for blob in blobs(store) if b"original" in blob.read_bytes()), content)
    with pytest.raises(SnapshotError, match=r"lacks 4 of 7 files or holds them damaged, for example link/module\.py"):
        store.materialise(snapshot, tmp_path / "job")
    assert not (tmp_path / "job").exists()
    assert store.store(snapshot, tree) == 1
    store.materialise(snapshot, tmp_path / "job")
    assert take_snapshot(tmp_path / "job") == snapshot


def test_missing_blob_is_noticed(tree: Path, store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    for blob in blobs(store):
        blob.unlink()
    with pytest.raises(SnapshotError, match=r"lacks 7 of 7 files"):
        store.materialise(snapshot, tmp_path / "job")


def test_target_with_files_is_left_alone(tree: Path, store: SnapshotStore, tmp_path: Path) -> None:
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    (tmp_path / "job").mkdir()
    store.materialise(snapshot, tmp_path / "job")
    with pytest.raises(OutputError, match="job is not empty"):
        store.materialise(snapshot, tmp_path / "job")
    assert take_snapshot(tmp_path / "job") == snapshot


def test_store_that_cannot_be_written_is_an_error(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    snapshot = take_snapshot(tree)
    with pytest.raises(OutputError, match=r"cannot be stored in .*file/store: Not a directory"):
        SnapshotStore(tmp_path / "file/store").store(snapshot, tree)


def test_full_disk_is_an_error_and_leaves_no_partial_blob(
    tree: Path, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = take_snapshot(tree)
    monkeypatch.setattr(snapshot_store.os, "write", lambda descriptor, block: len(block) - 1)
    with pytest.raises(OutputError, match="No space left on device"):
        store.store(snapshot, tree)
    monkeypatch.undo()
    assert all(not blob.read_bytes() for blob in blobs(store))  # the empty file needs no write
    assert list((store.folder / "tmp").iterdir()) == []


def test_where_blocks_can_be_shared_large_files_are_cloned(
    tree: Path, store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "large.bin").write_bytes(b"x" * 100_000)
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)
    cloned = []

    def clone(target: int, request: int, source: int) -> None:  # what the ioctl does on Btrfs and XFS
        assert request == 0x40049409
        cloned.append(os.fstat(source).st_size)
        os.write(target, os.read(source, 1_000_000))

    monkeypatch.setattr(snapshot_store.fcntl, "ioctl", clone)
    store.materialise(snapshot, tmp_path / "job")
    assert cloned == [100_000]
    assert take_snapshot(tmp_path / "job") == snapshot


def test_error_while_cloning_is_not_hidden(
    tree: Path, store: SnapshotStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "large.bin").write_bytes(b"x" * 100_000)
    snapshot = take_snapshot(tree)
    store.store(snapshot, tree)

    def fail(*_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(snapshot_store.fcntl, "ioctl", fail)
    with pytest.raises(OutputError, match=r"cannot be unpacked to .*job: Input/output error"):
        store.materialise(snapshot, tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_leftovers_of_killed_processes_are_removed_after_a_day(tree: Path, store: SnapshotStore) -> None:
    (store.folder / "tmp").mkdir(parents=True)
    for name, days in (("old", 2), ("new", 0)):
        (store.folder / "tmp" / name).write_text("")
        os.utime(store.folder / "tmp" / name, (time.time() - days * 86400,) * 2)
    store.store(take_snapshot(tree), tree)
    assert [file.name for file in (store.folder / "tmp").iterdir()] == ["new"]


def test_threads_may_store_and_unpack_the_same_at_once(tree: Path, tmp_path: Path) -> None:
    for number in range(200):
        (tree / f"file{number}").write_text(str(number % 50))
    snapshot = take_snapshot(tree)

    def submit(job: int) -> Snapshot:
        mine = SnapshotStore(tmp_path / "store")
        mine.store(snapshot, tree)
        mine.materialise(snapshot, tmp_path / f"job{job}")
        return take_snapshot(tmp_path / f"job{job}")

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(submit, range(6))) == [snapshot] * 6


def test_processes_may_store_and_unpack_the_same_at_once(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from health_ml.planning.snapshot import take_snapshot;"
        "from health_ml.planning.snapshot_store import SnapshotStore;"
        "tree, store, job = map(Path, sys.argv[1:]); snapshot = take_snapshot(tree);"
        "SnapshotStore(store).store(snapshot, tree); SnapshotStore(store).materialise(snapshot, job);"
        "print(take_snapshot(job) == snapshot)"
    )
    commands = [
        [sys.executable, "-c", code, str(tree), str(tmp_path / "store"), str(tmp_path / f"job{job}")]
        for job in range(3)
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["True"] * 3
