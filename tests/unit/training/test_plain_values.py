"""Hyperparameters become values that the safe loader reads back."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from datetime import date
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import param
import pytest
import torch

from health_ml.checkpoints.parser import CheckpointParser
from health_ml.training.checkpoint_io import AtomicCheckpointIO
from health_ml.training.plain_values import harmless_classes, is_plain, plain_value, with_plain_hyperparameters


class Size(Enum):
    SMALL = ("small", Path("/x"))


class Level(IntEnum):
    HIGH = 3


class Settings(param.Parameterized):
    rate = param.Number(0.5)
    size = param.ClassSelector(class_=Size, default=Size.SMALL)
    data = param.ClassSelector(class_=Path, default=Path("/data"))
    day = param.CalendarDate(date(2026, 1, 2))
    span = param.Range((0, 1))
    source = param.ClassSelector(class_=CheckpointParser, default=CheckpointParser("https://h/a.ckpt?sig=abc"))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Path("/a/b"), "/a/b"),
        (PurePosixPath("c"), "c"),
        (Size.SMALL, ("small", "/x")),
        (Level.HIGH, 3),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (Namespace(path=Path("/n")), {"path": "/n"}),
        (OrderedDict(a=[Path("/a")]), {"a": ["/a"]}),
        ({"a": {"b": (Path("/a"), 1)}}, {"a": {"b": ("/a", 1)}}),
        ({Path("/a")}, {"/a"}),
        (frozenset({1}), {1}),
        ([1, 2.5, None, "x", True, b"y"], [1, 2.5, None, "x", True, b"y"]),
        (torch.Size([2, 3]), torch.Size([2, 3])),
        (date(2026, 1, 2), "2026-01-02"),
        (
            Settings(),
            {
                "data": "/data",
                "day": "2026-01-02",
                "rate": 0.5,
                "size": ("small", "/x"),
                "source": "https://h/a.ckpt?sig=***",
                "span": (0, 1),
            },
        ),
    ],
)
def test_plain_values_survive_the_safe_loader(value: Any, plain: Any) -> None:
    result = plain_value(value)

    assert result == plain
    assert type(result) is type(plain)
    assert is_plain(result)
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == plain


@pytest.mark.parametrize("value", [Path("/a"), Size.SMALL, Level.HIGH, [Path("/a")], {"a": object()}, np.float32(1)])
def test_what_is_not_plain(value: Any) -> None:
    assert not is_plain(value)


def test_checkpoint_that_is_plain_stays_as_it_is() -> None:
    hyperparameters = {"rate": 0.1}

    plain = with_plain_hyperparameters({"hyper_parameters": hyperparameters, "epoch": 1})

    assert plain["hyper_parameters"] is hyperparameters


def test_those_of_the_data_module_too() -> None:
    checkpoint = {"datamodule_hyper_parameters": {"folder": Path("/data")}}

    assert with_plain_hyperparameters(checkpoint) == {"datamodule_hyper_parameters": {"folder": "/data"}}
    assert checkpoint["datamodule_hyper_parameters"]["folder"] == Path("/data")


def test_one_warning_about_what_has_no_plain_form(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = {"hyper_parameters": {"encoder_of_this_test": object()}}

    for _ in range(3):
        with_plain_hyperparameters(checkpoint)

    [warning] = [entry.getMessage() for entry in caplog.records]
    assert "'encoder_of_this_test' is a object" in warning
    assert "save_hyperparameters(ignore=['encoder_of_this_test'])" in warning


def test_secrets_do_not_get_into_checkpoints() -> None:
    token = "a1b2c3d4e5f6a7b8c9d0"
    values = {"rate": 1, "hub_token": token, "nested": {"urls": ["https://me:pass@host/x"], "password": "p4ss-w0rd!"}}

    plain = with_plain_hyperparameters({"hyper_parameters": values})["hyper_parameters"]

    assert plain == {"rate": 1, "hub_token": "***", "nested": {"urls": ["https://***@host/x"], "password": "***"}}
    assert values["hub_token"] == token


def test_what_only_sounds_like_a_secret_stays_as_it_is() -> None:
    values = {
        "keys": ["image", "label"],
        "key": "image",
        "token": "[CLS]",
        "signature": "serving_default",
        "text_key": "t",
    }
    assert with_plain_hyperparameters({"hyper_parameters": values})["hyper_parameters"] == values


def test_harmless_classes_are_those_of_plain_values(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    content = {"size": Size.SMALL, "level": Level.HIGH, "path": Path("/p"), "all": Namespace(a=1), "no": Settings()}
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed") as caught:
        torch.load(path, weights_only=True)

    found = harmless_classes(path, caught.value)

    names = {class_.__name__ for class_, _ in found}
    assert names - {"_member"} == {"Size", "Level", type(Path()).__name__, "Namespace"}
    del content["no"]
    torch.save(content, path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == content


class AsCall(Enum):
    """Is stored as some versions of Python store every enum."""

    FIRST = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (type(self), self.name)


class Reaching:
    """Is stored as a call that reaches a function of a class that is harmless itself."""

    def __reduce__(self) -> Any:
        return getattr, (type(Path()), "unlink")


def test_a_call_of_getattr_gives_members_of_enums_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save({"call": AsCall.FIRST, "path": Path("/p")}, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded == {"call": AsCall.FIRST, "path": Path("/p")}
    torch.save({"call": Reaching(), "path": Path("/p")}, path)
    with pytest.raises(pickle.UnpicklingError, match="has no member 'unlink'"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


def test_no_module_is_imported_to_find_a_class(tmp_path: Path) -> None:
    path = tmp_path / "foreign.ckpt"
    pickled = pickle.dumps({"epoch": 1}, 2)[:-2] + b"cthis_module_would_run_code\nMode\n."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/version", "3\n")

    assert harmless_classes(path, pickle.UnpicklingError("GLOBAL this_module_would_run_code.Mode was not")) == []
    with pytest.raises(pickle.UnpicklingError, match="this_module_would_run_code"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert "this_module_would_run_code" not in sys.modules
