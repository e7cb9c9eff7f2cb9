"""Which checkpoint an interrupted run continues from, and what is kept when it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.unit.checkpoints.conftest import save

from health_ml.checkpoints.files import cleanup_checkpoints, get_best_checkpoint_path, list_recoverable_files
from health_ml.checkpoints.recovery import find_recovery_checkpoint, get_recovery_checkpoint_path
from health_ml.errors import CheckpointError


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"last": (3, 30), "autosave": (4, 40)}, "autosave"),
        ({"last": (4, 40), "autosave": (3, 30)}, "last"),
        ({"last": (4, 40), "autosave": (4, 45)}, "autosave"),
        ({"last": (4, 40), "autosave": (4, 40)}, "last"),
        ({"autosave": (3, 30), "autosave-v1": (4, 40), "last": (2, 20), "last-v1": (1, 10)}, "autosave-v1"),
        ({"best": (9, 90), "last": (1, 10)}, "last"),
    ],
)
def test_the_highest_epoch_and_step_wins(tmp_path: Path, files: dict[str, tuple[int, int]], expected: str) -> None:
    for name, (epoch, step) in files.items():
        save(tmp_path / f"{name}.ckpt", epoch, step)
    assert find_recovery_checkpoint(tmp_path) == tmp_path / f"{expected}.ckpt"
    assert get_recovery_checkpoint_path(tmp_path) == tmp_path / f"{expected}.ckpt"


def test_nothing_to_recover(tmp_path: Path) -> None:
    assert find_recovery_checkpoint(tmp_path) is None
    assert find_recovery_checkpoint(tmp_path / "none") is None
    with pytest.raises(CheckpointError, match=r"There is no checkpoint to continue from in .*\. It holds nothing\."):
        get_recovery_checkpoint_path(tmp_path)


@pytest.mark.parametrize("kind", ["cut off", "one byte changed"])
def test_a_damaged_checkpoint_is_reported_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    good = save(tmp_path / "last.ckpt", 3, 30)
    damaged = save(tmp_path / "autosave.ckpt", 4, 40)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content[:-50] if kind == "cut off" else content)
    with caplog.at_level(logging.WARNING):
        assert find_recovery_checkpoint(tmp_path) == good
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"The checkpoint {damaged} is damaged" in caplog.text


def test_starting_from_zero_next_to_damaged_files_is_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"PK\x03\x04 half")
    (tmp_path / "autosave.ckpt").write_bytes(b"")
    assert find_recovery_checkpoint(tmp_path) is None
    assert "can be used: autosave.ckpt, last.ckpt. The training starts from the beginning." in caplog.text


def test_what_cannot_be_read_for_another_reason_stops_the_recovery(tmp_path: Path) -> None:
    save(tmp_path / "autosave.ckpt", 1, 10)
    (tmp_path / "last.ckpt").symlink_to("last.ckpt")
    with pytest.raises(CheckpointError, match=r"Cannot continue the training: .*last\.ckpt cannot be read"):
        find_recovery_checkpoint(tmp_path)
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"last\.ckpt is a folder\. Nothing was started"):
        find_recovery_checkpoint(tmp_path)
    (tmp_path / "last.ckpt").rmdir()
    (tmp_path / "last.ckpt").write_text("<html>")
    with pytest.raises(CheckpointError, match=r"is not a checkpoint but a web page"):
        find_recovery_checkpoint(tmp_path)


def test_files_that_are_still_being_written_are_ignored(tmp_path: Path) -> None:
    kept = ["last.ckpt", "last-v1.ckpt", "last-epoch=3-loss=0.25.ckpt", "autosave.ckpt", "autosave-v2.ckpt"]
    others = [".last.ckpt.tmp", "last.ckpt.tmp", "last.ckpt.part", ".last.ckpt", "last.tmp.ckpt", "lastly.ckpt", "x"]
    for name in [*kept, *others]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_recoverable_files(tmp_path)] == sorted(kept)


def test_cleaning_up_keeps_everything_but_autosaves(tmp_path: Path) -> None:
    for name in ("last.ckpt", "autosave.ckpt", "autosave-v1.ckpt", "best.ckpt", "autosaves.txt"):
        (tmp_path / name).write_bytes(b"")
    cleanup_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autosaves.txt", "best.ckpt", "last.ckpt"]


def test_cleaning_up_without_a_last_checkpoint_removes_nothing(tmp_path: Path) -> None:
    cleanup_checkpoints(tmp_path)
    cleanup_checkpoints(tmp_path / "none")
    (tmp_path / "autosave.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"There is no last\.ckpt in .*; the folder holds autosave\.ckpt\."):
        cleanup_checkpoints(tmp_path)
    assert (tmp_path / "autosave.ckpt").exists()
    assert get_best_checkpoint_path(tmp_path) == tmp_path / "last.ckpt"
