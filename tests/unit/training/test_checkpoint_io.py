"""A checkpoint file is complete at any moment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from health_ml.checkpoints.inspect import verify
from health_ml.errors import OutputError
from health_ml.training.checkpoint_io import AtomicCheckpointIO, write_checkpoint
from tests.helpers.disk import largest_file


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.ckpt"
    checkpoint = {"epoch": 3, "state_dict": {"weight": torch.arange(5)}}

    AtomicCheckpointIO().save_checkpoint(checkpoint, path)

    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(5))
    assert os.listdir(path.parent) == ["a.ckpt"]


@pytest.mark.parametrize("elements", [20_000, 5_000_000])
def test_full_disk_keeps_the_previous_file(tmp_path: Path, elements: int) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"epoch": 1}, path)

    with (
        largest_file(50_000),
        pytest.raises(OutputError, match=r"last\.ckpt: File too large\. The previous file is") as e,
    ):
        write_checkpoint({"epoch": 2, "weights": torch.zeros(elements)}, path)

    assert "choose another folder" in e.value.hint
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_full_disk_without_a_previous_file(tmp_path: Path) -> None:
    with largest_file(50_000), pytest.raises(OutputError, match=r"last\.ckpt: File too large\. Nothing was written"):
        write_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "last.ckpt")

    assert os.listdir(tmp_path) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(OutputError, match=r"Cannot write the checkpoint .*file/last\.ckpt: .*"):
        write_checkpoint({}, tmp_path / "file" / "last.ckpt")


def test_values_that_cannot_be_stored_are_an_error_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"epoch": 1}, path)

    with pytest.raises(AttributeError, match="local object"):
        write_checkpoint({"function": lambda: None}, path)

    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def test_link_is_replaced_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "best.ckpt"
    write_checkpoint({"epoch": 1}, other)
    (tmp_path / "last.ckpt").symlink_to(other)

    write_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")

    assert torch.load(other, weights_only=True) == {"epoch": 1}
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"epoch": 2}


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-12345.tmp").write_bytes(b"half a file")
    with (tmp_path / ".checkpoint-54321.tmp").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        write_checkpoint({"epoch": 1}, tmp_path / "epoch=1.ckpt")

    assert sorted(os.listdir(tmp_path)) == [".checkpoint-54321.tmp", "epoch=1.ckpt"]


@pytest.mark.parametrize("name", ["x" * 250 + ".ckpt", "a b'\"\n.ckpt", "Ünïcødé-😀.ckpt", "-rf.ckpt", "%s{0}.ckpt"])
def test_every_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    write_checkpoint({"epoch": 1}, tmp_path / name)

    assert os.listdir(tmp_path) == [name]
    verify(tmp_path / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_file_system_that_is_really_full_keeps_the_previous_file(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    try:
        path = folder / "last.ckpt"
        write_checkpoint({"epoch": 1, "weights": torch.zeros(50_000)}, path)
        with pytest.raises(OutputError, match=r"last\.ckpt: No space left on device\. The previous file is unchanged"):
            write_checkpoint({"epoch": 2, "weights": torch.zeros(250_000)}, path)
        assert os.listdir(folder) == ["last.ckpt"]
        verify(path)
        assert torch.load(path, weights_only=True)["epoch"] == 1
        del path
    finally:
        subprocess.run(["umount", str(folder)], check=True)


WRITER = """
import sys, torch
from pathlib import Path
from health_ml.training.checkpoint_io import write_checkpoint
path = Path(sys.argv[1])
for epoch in range(10**6):
    write_checkpoint({"epoch": epoch, "weights": torch.full((500_000,), float(epoch))}, path)
    print(epoch, flush=True)
"""


def test_killed_writer_leaves_a_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "0"
        for _ in range(20):  # a reader at any moment finds a whole file
            checkpoint = torch.load(path, weights_only=True)
            assert torch.all(checkpoint["weights"] == checkpoint["epoch"])
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    checkpoint = torch.load(path, weights_only=True)
    assert torch.all(checkpoint["weights"] == checkpoint["epoch"])
