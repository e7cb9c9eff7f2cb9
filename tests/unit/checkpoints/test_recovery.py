"""Which checkpoint an interrupted run continues from, and what is kept when it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from health_ml.checkpoints.files import (
    cleanup_checkpoints,
    get_best_checkpoint_path,
    is_of_the_runner,
    list_checkpoint_files,
)
from health_ml.checkpoints.recovery import find_recovery_checkpoint, get_recovery_checkpoint_path
from health_ml.errors import CheckpointError
from tests.unit.checkpoints.conftest import save


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"last": (3, 30), "autosave": (4, 40)}, "autosave"),
        ({"last": (4, 40), "autosave": (3, 30)}, "last"),
        ({"last": (4, 40), "autosave": (4, 45)}, "autosave"),
        ({"last": (4, 40), "autosave": (4, 40)}, "last"),
        ({"autosave": (3, 30), "autosave-v1": (4, 40), "last": (2, 20), "last-v1": (1, 10)}, "autosave-v1"),
        ({"best": (9, 90), "last": (1, 10)}, "best"),
        ({"best": (3, 30), "epoch=4-step=40": (4, 40)}, "epoch=4-step=40"),
        ({"best": (4, 40), "last": (4, 40)}, "last"),
    ],
)
def test_the_highest_epoch_and_step_wins(tmp_path: Path, files: dict[str, tuple[int, int]], expected: str) -> None:
    for name, (epoch, step) in files.items():
        save(tmp_path / f"{name}.ckpt", epoch, step, optimizer_states=[])
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


def test_the_users_own_checkpoint_replaces_a_damaged_one(tmp_path: Path) -> None:
    best = save(tmp_path / "best.ckpt", 3, 30, optimizer_states=[])
    last = save(tmp_path / "last.ckpt", 4, 40)
    last.write_bytes(last.read_bytes()[:-50])
    assert find_recovery_checkpoint(tmp_path) == best


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"last.ckpt": b"PK\x03\x04 half", "autosave.ckpt": b""}, "last.ckpt is damaged"),
        ({"best.ckpt": b"<html>"}, "best.ckpt is not a checkpoint but a web page"),
        ({"weights.ckpt": None}, "weights.ckpt holds the weights alone"),
    ],
)
def test_checkpoints_of_which_none_can_be_used_are_an_error(
    files: dict[str, bytes | None], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in files.items():
        if content is None:
            save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
    names = ", ".join(sorted(files))
    with pytest.raises(CheckpointError, match=f"can be used: {names}. The log says why. Nothing was started"):
        find_recovery_checkpoint(tmp_path)
    assert reason in caplog.text


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
    kept = ["last.ckpt", "last-v1.ckpt", "last-epoch=3-loss=0.25.ckpt", "autosave.ckpt", "best.ckpt", "epoch=1.ckpt"]
    others = [".last.ckpt.17.tmp", "last.ckpt.tmp", "last.ckpt.part", ".last.ckpt", "x"]
    for name in [*kept, *others]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in list_checkpoint_files(tmp_path)] == sorted(kept)
    assert list_checkpoint_files(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        *((f"{stem}.ckpt", True) for stem in ("last", "last-v1", "last-epoch=3-loss=0.25", "autosave", "autosave-v2")),
        *((f"{stem}.ckpt", False) for stem in ("best", "lastly", "last.tmp", "epoch=3", "autosaves")),
    ],
)
def test_which_files_the_runner_writes(name: str, is_own: bool) -> None:
    assert is_of_the_runner(Path(name)) is is_own


def test_cleaning_up_keeps_everything_but_autosaves(tmp_path: Path) -> None:
    for name in ("last.ckpt", "autosave.ckpt", "autosave-v1.ckpt", "best.ckpt", "autosaves.ckpt"):
        (tmp_path / name).write_bytes(b"")
    cleanup_checkpoints(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autosaves.ckpt", "best.ckpt", "last.ckpt"]


def test_cleaning_up_without_a_last_checkpoint_removes_nothing(tmp_path: Path) -> None:
    cleanup_checkpoints(tmp_path)
    cleanup_checkpoints(tmp_path / "none")
    (tmp_path / "autosave.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"There is no last\.ckpt in .*; the folder holds autosave\.ckpt\."):
        cleanup_checkpoints(tmp_path)
    assert (tmp_path / "autosave.ckpt").exists()
    assert get_best_checkpoint_path(tmp_path) == tmp_path / "last.ckpt"
