"""Whole checkpoints, loaded safely if somebody else wrote them."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from tests.unit.checkpoints.conftest import save

from health_ml.checkpoints.loading import load_checkpoint
from health_ml.errors import CheckpointError


@pytest.mark.parametrize("is_trusted", [True, False])
def test_plain_checkpoints_are_loaded(lightning_checkpoint: Path, is_trusted: bool) -> None:
    loaded = load_checkpoint(lightning_checkpoint, is_trusted=is_trusted)
    assert loaded["global_step"] == 6
    assert loaded["state_dict"]["layer.weight"].device == torch.device("cpu")


def test_classes_are_refused_unless_the_file_is_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "x.ckpt", hyper_parameters={"folder": Path("data")})
    with pytest.raises(CheckpointError, match=r"PosixPath, which the safe loader of torch refuses.*add_safe_globals"):
        load_checkpoint(path, is_trusted=False)
    with caplog.at_level(logging.INFO):
        assert load_checkpoint(path, is_trusted=True)["hyper_parameters"] == {"folder": Path("data")}
    assert "PosixPath; it is loaded in full, because a run of yours wrote it" in caplog.text


def test_a_class_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("module_of_old_days")
    exec("class Settings: pass", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = save(tmp_path / "x.ckpt", hyper_parameters=module.Settings())
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(CheckpointError, match=r"not here any more: No module named 'module_of_old_days'"):
        load_checkpoint(path, is_trusted=True)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_damage_is_named(checkpoint: Path, is_trusted: bool) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-50])
    with pytest.raises(CheckpointError, match="is damaged or incomplete: its end is missing"):
        load_checkpoint(checkpoint, is_trusted=is_trusted)
    checkpoint.write_bytes(content.replace(b"data/0", b"data/9"))
    with pytest.raises(CheckpointError, match=r"given\.ckpt"):
        load_checkpoint(checkpoint, is_trusted=is_trusted)


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="the weights of a model alone"):
        load_checkpoint(tmp_path / "x.ckpt", is_trusted=True)
