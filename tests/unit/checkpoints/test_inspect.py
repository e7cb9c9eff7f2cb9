"""Epoch and step without loading, and what is wrong with a file."""

from __future__ import annotations

import collections
import io
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from health_ml.checkpoints.inspect import (
    CheckpointProgress,
    DamagedCheckpointError,
    describe_refusal,
    read_progress,
    verify,
)
from health_ml.checkpoints.pickle_reader import Opaque, PickleOutlineError, read_outline
from health_ml.errors import CheckpointError
from tests.unit.checkpoints.conftest import checkpoint_content, save


class RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_of_lightning(lightning_checkpoint: Path) -> None:
    loaded = torch.load(lightning_checkpoint, weights_only=True)
    assert read_progress(lightning_checkpoint) == CheckpointProgress(loaded["epoch"], loaded["global_step"])
    assert read_progress(lightning_checkpoint).global_step == 6
    verify(lightning_checkpoint)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_reversed", [True, False])
def test_every_pickle_protocol_and_order(tmp_path: Path, protocol: int, is_zip: bool, is_reversed: bool) -> None:
    content = {
        **checkpoint_content(70_000, 2**40),
        "hyper_parameters": {"epoch": -1, "global_step": -2, "path": Path("x"), "set": {1, 2}, "t": (1, 2, 3, 4)},
        "loops": [{"epoch": -1}, {"global_step": 5}, collections.OrderedDict(epoch=-1), b"bytes", 1.5, None],
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
    }
    if is_reversed:
        content = dict(reversed(content.items()))
    path = tmp_path / "x.ckpt"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    assert read_progress(path) == CheckpointProgress(70_000, 2**40)
    verify(path)


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    path = tmp_path / "x.ckpt"
    torch.save({"evil": RunsCode(trap), "epoch": 1, "global_step": 2}, path)
    assert read_progress(path) == CheckpointProgress(1, 2)
    verify(path)
    assert not trap.exists()
    with pytest.raises(pickle.UnpicklingError, match="unsupported GLOBAL posix") as caught:
        torch.load(path, weights_only=True)
    text = describe_refusal(path, caught.value)
    assert "calls posix.mkdir, which no checkpoint needs" in text
    assert "--trust_checkpoint" not in text


def test_a_record_that_is_compressed_and_not_the_first_is_found(tmp_path: Path, checkpoint: Path) -> None:
    repacked = tmp_path / "repacked.ckpt"
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(repacked, "w", zipfile.ZIP_DEFLATED) as target:
        for name in reversed(source.namelist()):
            target.writestr(name, source.read(name))
    assert read_progress(repacked) == CheckpointProgress(3, 17)
    verify(repacked)


def test_a_large_checkpoint_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    content = {**checkpoint_content(), "more": [torch.zeros(1 << 20) for _ in range(8)]}
    torch.save(content, path)
    read_progress(path)
    begin = time.perf_counter()
    for _ in range(10):
        read_progress(path)
    assert (time.perf_counter() - begin) / 10 < 0.005


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (torch.nn.Linear(2, 2).state_dict(), r"the weights of a model alone \(a state_dict with 2 tensors: 'weight'"),
        ({"model": {"a": torch.ones(1)}, "args": 1}, "a dictionary with the keys 'model', 'args'"),
        ({"epoch": 3}, "a dictionary with the keys 'epoch'"),
        ({}, "an empty dictionary"),
        (torch.nn.Linear(2, 2), r"an object of the class torch\.nn\.modules\.linear\.Linear"),
        (torch.ones(2), r"an object of the class torch\._utils\._rebuild_tensor_v2"),
        ([1, 2], "a list, a tuple or a single value"),
        ("text", "a value of the type str"),
    ],
)
def test_what_is_no_lightning_checkpoint_is_described(tmp_path: Path, content: Any, what: str) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=rf"is not a Lightning checkpoint: it holds {what}.*create_model") as info:
        read_progress(tmp_path / "x.ckpt")
    assert not isinstance(info.value, DamagedCheckpointError)


@pytest.mark.parametrize("epoch", [None, 1.5, "3", True, torch.tensor(3), (3,)])
def test_an_epoch_that_is_no_number_is_refused(tmp_path: Path, epoch: Any) -> None:
    torch.save({"epoch": epoch, "global_step": 1, "state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="epoch and step are no whole numbers"):
        read_progress(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<html></html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        ((40).to_bytes(8, "little") + b'{"__metadata__":{}}', "a safetensors file"),
        (b"hello, world", "a file that starts with b'hello, world'"),
        (pickle.dumps([1, 2]), "a pickle of something else"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.ckpt is not a checkpoint but {kind}"):
        read_progress(path)
    with pytest.raises(CheckpointError, match=rf"x\.ckpt is not a checkpoint but {kind}"):
        verify(path)


def test_another_zip_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    for check in (read_progress, verify):
        with pytest.raises(CheckpointError, match="is a zip archive, but no torch file"):
            check(path)


def test_missing_files_folders_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"There is no checkpoint file {tmp_path}/none\.ckpt"):
        read_progress(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder\. Checkpoints in several parts"):
        verify(tmp_path)
    (tmp_path / "loop.ckpt").symlink_to("loop.ckpt")
    with pytest.raises(CheckpointError, match=r"cannot be read: Too many levels"):
        read_progress(tmp_path / "loop.ckpt")


@pytest.mark.parametrize("kept", [0, 1, 3, 30, 200, 0.3, 0.9, 0.999, -1])
def test_a_file_that_was_cut_off_is_noticed(checkpoint: Path, kept: float) -> None:
    content = checkpoint.read_bytes()
    length = int(len(content) * kept) if 0 < kept < 1 else int(kept)
    checkpoint.write_bytes(content[:length])
    reason = "is damaged or incomplete" if length not in (1, 3) else "is not a checkpoint but a file that starts with"
    for check in (read_progress, verify):
        with pytest.raises(CheckpointError, match=reason):
            check(checkpoint)


@pytest.mark.parametrize("content", [b"", bytes(5000)])
def test_lost_content_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    for check in (read_progress, verify):
        with pytest.raises(DamagedCheckpointError, match=r"it is empty|it begins with zeros"):
            check(tmp_path / "x.ckpt")


def test_an_archive_of_more_than_4_gib_is_found_by_its_second_directory(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[-10:-2] = b"\xff" * 8  # torch always writes the ZIP64 records; now only they know where things are
    checkpoint.write_bytes(content)
    assert read_progress(checkpoint) == CheckpointProgress(3, 17)
    verify(checkpoint)
    content[-98:-42] = bytes(56)
    checkpoint.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="the pointer to its directory leads nowhere"):
        read_progress(checkpoint)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_missing_or_added_bytes_are_noticed_wherever_they_are(checkpoint: Path, data: st.DataObject) -> None:
    content = checkpoint.read_bytes()
    position = data.draw(st.integers(200, len(content) - 100))
    change = data.draw(st.sampled_from([b"", b"\0\0"]))
    damaged = checkpoint.with_name("damaged.ckpt")
    damaged.write_bytes(content[:position] + change + content[position + 1 :])
    with pytest.raises(DamagedCheckpointError, match="is damaged or incomplete"):
        verify(damaged)


def test_one_changed_byte_in_a_tensor_is_found_by_its_checksum(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    assert read_progress(checkpoint) == CheckpointProgress(3, 17)
    with pytest.raises(DamagedCheckpointError, match=r"its record 'given/data/0' differs from its checksum"):
        verify(checkpoint)


def progress_or_error(path: Path) -> CheckpointProgress | CheckpointError:
    try:
        return read_progress(path)
    except CheckpointError as error:
        return error


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_ends_in_an_error_of_ours(tmp_path: Path, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save(checkpoint_content(), buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(64, 600) | st.integers(-200, -1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    outcome = progress_or_error(path)
    assert isinstance(outcome, CheckpointProgress) or "x.ckpt" in outcome.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    st.integers(2, pickle.HIGHEST_PROTOCOL),
)
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    assert read_outline(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_other_objects_are_opaque_and_their_names_known() -> None:
    outline = read_outline(io.BytesIO(pickle.dumps({"path": Path("x"), "list": [1], "again": [2]}, 4)))
    assert list(outline) == ["path", "list", "again"]
    assert outline["path"].name in ("pathlib.PosixPath", "pathlib._local.PosixPath")
    assert isinstance(outline["list"], Opaque)


def test_no_pickle_at_all() -> None:
    for content in (b"", b"\x80\x04", b"}", b"(u.", b"hello"):
        with pytest.raises(PickleOutlineError, match=r"."):
            read_outline(io.BytesIO(content))


def test_a_refusal_names_the_class_and_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", hyper_parameters={"folder": Path("data")})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed") as caught:
        torch.load(path, weights_only=True)
    text = describe_refusal(path, caught.value)
    assert "PosixPath" in text
    assert "If you trust whoever wrote the file, add --trust_checkpoint." in text
    assert "Unsupported" in describe_refusal(tmp_path / "none.ckpt", ValueError("Unsupported thing\nmore"))


def test_the_benchmark_measures_what_it_says() -> None:
    from benchmarks.checkpoint_progress import main

    (row,) = main(tensors=8)
    assert row.name == "epoch and step of 8 MB"
    assert 0 < row.value < 5
    assert row.ratio == pytest.approx(row.baseline / row.value if row.baseline else 0)
