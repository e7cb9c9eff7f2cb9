"""A checkpoint of this user's runs is known by its signature, and by nothing else."""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from health_ml.checkpoints.signature import _signing_key, check_signing_key, is_own, sign
from health_ml.errors import CheckpointError
from tests.unit.checkpoints.conftest import save


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the key of a user who has never run anything."""
    _signing_key.cache_clear()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "state" / "health_ml" / "checkpoint-key"
    _signing_key.cache_clear()


def signed_run(folder: Path) -> Path:
    """Returns the checkpoint of a run that noted it in its record."""
    path = save(folder / "checkpoints" / "last.ckpt")
    note(folder, sign(path))
    return path


def note(folder: Path, signature: str | None) -> None:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    row = json.dumps({"name": "last.ckpt", "signature": signature}, separators=(",", ":"))
    with (folder / "run" / "checkpoints.jsonl").open("a") as file:
        file.write(f"{row}\n")


@pytest.mark.usefixtures("key")
def test_a_run_knows_its_checkpoints_wherever_its_folder_goes(tmp_path: Path) -> None:
    path = signed_run(tmp_path / "run_1")
    assert is_own(path)
    shutil.copytree(tmp_path / "run_1", tmp_path / "elsewhere" / "run_1")
    assert is_own(tmp_path / "elsewhere" / "run_1" / "checkpoints" / "last.ckpt")
    path.rename(path.with_name("renamed.ckpt"))
    assert is_own(path.with_name("renamed.ckpt"))


@pytest.mark.usefixtures("key")
def test_what_was_put_into_a_run_folder_is_not_of_the_run(tmp_path: Path) -> None:
    path = signed_run(tmp_path / "run_1")
    assert not is_own(save(path.with_name("other.ckpt")))
    assert not is_own(save(tmp_path / "run_2" / "checkpoints" / "last.ckpt"))
    assert not is_own(path.with_name("gone.ckpt"))
    shutil.copy(path, tmp_path / "alone.ckpt")
    assert not is_own(tmp_path / "alone.ckpt")
    link = path.with_name("link.ckpt")
    link.symlink_to(save(tmp_path / "foreign.ckpt"))
    assert not is_own(link)


def test_the_record_of_somebody_else_vouches_for_nothing(tmp_path: Path, key: Path) -> None:
    path = signed_run(tmp_path / "run_1")
    key.write_bytes(bytes(32))
    _signing_key.cache_clear()
    assert not is_own(path)


@pytest.mark.usefixtures("key")
def test_a_changed_pickle_or_directory_is_noticed(tmp_path: Path) -> None:
    path = signed_run(tmp_path / "run_1")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first, second = archive.infolist()[:2]
        directory = archive.start_dir
    for position in (0, 26, 40, first.file_size // 2, second.header_offset - 1, directory, directory + 30, -1, -6):
        changed = bytearray(data)
        changed[position] ^= 1
        path.write_bytes(changed)
        assert not is_own(path), position
    for changed_size in (data + b"x", data[:-1], b"x" + data, b""):
        path.write_bytes(changed_size)
        assert not is_own(path)
    path.write_bytes(data)
    assert is_own(path)


@pytest.mark.usefixtures("key")
def test_only_the_form_that_torch_writes_can_be_signed(tmp_path: Path) -> None:
    torch.save({"epoch": 1}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert sign(tmp_path / "old.ckpt") is None
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("x/version", "3")
        archive.writestr("x/data.pkl", "N.")
    assert sign(tmp_path / "other.ckpt") is None
    note(tmp_path, None)
    assert not is_own(tmp_path / "other.ckpt")


@pytest.mark.usefixtures("key")
def test_a_large_checkpoint_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    torch.save({"epoch": 1, "weights": torch.zeros(1)}, path)
    with path.open("rb") as file:
        before = os.fstat(file.fileno()).st_size
    torch.save({"epoch": 1, "weights": torch.zeros(50_000_000)}, path)
    assert path.stat().st_size > 1000 * before
    counts = Path("/proc/self/io").read_text()
    sign(path)
    assert _bytes_read(Path("/proc/self/io").read_text()) - _bytes_read(counts) < 100_000


def _bytes_read(text: str) -> int:
    return int(text.split("rchar:")[1].split()[0])


def test_the_key_is_private_and_the_same_for_all(tmp_path: Path, key: Path) -> None:
    before = os.umask(0)
    try:
        signatures: list[str | None] = []
        path = save(tmp_path / "a.ckpt")
        threads = [threading.Thread(target=lambda: signatures.append(sign(path))) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        os.umask(before)
    assert len(set(signatures)) == 1
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert os.listdir(key.parent) == ["checkpoint-key"]
    _signing_key.cache_clear()
    assert sign(path) == signatures[0]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o777])
def test_a_key_that_others_can_use_is_kept_and_made_private(
    tmp_path: Path, key: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = signed_run(tmp_path / "run_1")
    content = key.read_bytes()
    key.chmod(mode)
    _signing_key.cache_clear()
    assert is_own(path)
    assert (key.read_bytes(), stat.S_IMODE(key.stat().st_mode)) == (content, 0o600)
    assert f"Others could use {key}" in caplog.text
    caplog.clear()
    _signing_key.cache_clear()
    assert is_own(path)
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"ab", bytes(31), bytes(33)])
def test_a_damaged_key_is_never_replaced(tmp_path: Path, key: Path, content: bytes) -> None:
    path = signed_run(tmp_path / "run_1")
    _signing_key.cache_clear()
    key.write_bytes(content)
    for use in (lambda: sign(path), lambda: is_own(path), check_signing_key):
        with pytest.raises(CheckpointError, match=r"is damaged: it has not 32 bytes\. Restore it from a backup, or"):
            use()
    assert key.read_bytes() == content
    key.unlink()
    check_signing_key()
    assert not is_own(path)
    assert len(key.read_bytes()) == 32


def test_a_key_of_another_user_is_neither_used_nor_replaced(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = signed_run(tmp_path / "run_1")
    content = key.read_bytes()
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    _signing_key.cache_clear()
    assert not is_own(path)
    assert "(it belongs to another user)" in caplog.text
    assert key.read_bytes() == content


def test_without_a_place_for_the_key_it_lasts_as_long_as_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    path = signed_run(tmp_path / "run_1")
    assert is_own(path)
    _signing_key.cache_clear()
    assert not is_own(path)
    assert not key.exists()
