"""Helpers for containers and scripts."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from health_ml.training.helpers import (
    change_working_directory,
    df_to_json,
    elapsed_timer,
    health_ml_package_setup,
    is_global_rank_zero,
    is_gpu_available,
    is_local_rank_zero,
    logging_section,
)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_section_has_a_first_and_a_last_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), logging_section("counting"):
        logging.getLogger("mine").info("one")
    first, middle, last = messages(caplog)
    assert re.fullmatch(r"\*\*\*\* STARTING: counting \*+", first)
    assert middle == "one"
    assert re.fullmatch(r"\*\*\*\* FINISHED: counting after \d+\.\d\d seconds \*+", last)
    assert len(first) == len(last) == 100


def test_section_that_fails_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(KeyError, match="gone"), logging_section("counting"):
        raise KeyError("gone")
    assert "FAILED: counting after" in messages(caplog)[-1]


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.25 seconds"), (90.0, "1.50 minutes"), (5400.0, "1.50 hours")])
def test_time_taken(
    seconds: float, text: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr("health_ml.training.helpers.time.perf_counter", lambda: next(ticks))
    with caplog.at_level(logging.INFO), pytest.raises(KeyError, match="gone"), elapsed_timer("Counting"):
        raise KeyError("gone")
    monkeypatch.undo()
    assert messages(caplog)[-1] == f"Counting took {text}"


def test_working_directory_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path.cwd()
    monkeypatch.setenv("HOME", str(tmp_path))
    with change_working_directory("~"):
        assert Path.cwd() == tmp_path
    assert Path.cwd() == before
    with pytest.raises(KeyError, match="gone"), change_working_directory(tmp_path):
        raise KeyError("gone")
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("variables", "is_local", "is_global"),
    [
        ({}, True, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True, True),
        ({"LOCAL_RANK": "1"}, False, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, True, False),
        ({"RANK": "3", "LOCAL_RANK": "0", "NODE_RANK": "1"}, True, False),
    ],
)
def test_ranks(variables: dict[str, str], is_local: bool, is_global: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (is_local_rank_zero(), is_global_rank_zero()) == (is_local, is_global)


def test_gpu_is_what_torch_says() -> None:
    assert is_gpu_available() == (torch.cuda.device_count() > 0)


@pytest.mark.parametrize("add_newline", [True, False])
def test_table_as_json(add_newline: bool, tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    df_to_json(pd.DataFrame({"a": [1, 2]}), file, add_newline=add_newline)
    text = file.read_text()
    assert text.endswith("\n") == add_newline
    assert json.loads(text) == {"a": {"0": 1, "1": 2}}


@pytest.fixture
def _logging_levels() -> Iterator[None]:
    """Puts back the level of every logger."""
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    yield
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.mark.usefixtures("_logging_levels")
def test_talkative_libraries_are_quiet_at_debug() -> None:
    library = logging.getLogger("matplotlib.font_manager")
    logging.getLogger("matplotlib").setLevel(logging.DEBUG)
    health_ml_package_setup()
    assert not library.isEnabledFor(logging.DEBUG)
    assert library.isEnabledFor(logging.INFO)
