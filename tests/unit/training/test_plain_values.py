"""Hyperparameters become values that the safe loader reads back."""

from __future__ import annotations

import io
from argparse import Namespace
from collections import OrderedDict
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from health_ml.training.plain_values import is_plain, plain_value, with_plain_hyperparameters


class Size(Enum):
    SMALL = ("small", Path("/x"))


class Level(IntEnum):
    HIGH = 3


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
