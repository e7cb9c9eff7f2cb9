"""The local store of runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from health_ml.errors import RunNotFoundError
from health_ml.planning.run_store import find_run_folder


def make_run(store: Path, run_id: str, age: int = 0) -> Path:
    folder = store / run_id
    folder.mkdir(parents=True)
    os.utime(folder, (1_700_000_000 - age, 1_700_000_000 - age))
    return folder


def test_runs_lie_in_outputs_or_where_output_to_says(tmp_path: Path) -> None:
    default = make_run(tmp_path / "outputs", "run_1")
    assert find_run_folder("run_1", tmp_path) == default
    chosen = make_run(tmp_path / "elsewhere", "run_1")
    assert find_run_folder("run_1", tmp_path, Path("elsewhere")) == chosen
    assert find_run_folder("run_1", tmp_path, tmp_path / "elsewhere") == chosen
    make_run(tmp_path / "outputs", "run_2")
    assert find_run_folder("run_2", tmp_path, Path("elsewhere")).parent == tmp_path / "outputs"


def test_a_misspelt_run_gets_the_nearest_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs", "2025-01-31T120000Z_HelloWorld")
    with pytest.raises(RunNotFoundError, match=r"no run '2025-01-31T120000Z_Hello' in .*/outputs\. Did you mean '2025"):
        find_run_folder("2025-01-31T120000Z_Hello", tmp_path)


def test_an_unknown_run_gets_the_newest_ones(tmp_path: Path) -> None:
    for age in range(5):
        make_run(tmp_path / "outputs", f"run_{age}", age)
    (tmp_path / "outputs" / "file").write_text("no run")
    with pytest.raises(RunNotFoundError, match=r"The newest runs are run_0, run_1, run_2\."):
        find_run_folder("zzzzzzzz", tmp_path)


def test_an_empty_store_says_where_it_would_be(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match=r"/elsewhere and /.*/outputs\. No run has been stored there yet"):
        find_run_folder("run", tmp_path, Path("elsewhere"))


@pytest.mark.parametrize("run_id", ["", ".", "..", "a/b", "a\\b", "a\0b", "../x", "/etc"])
def test_only_plain_names_are_run_ids(tmp_path: Path, run_id: str) -> None:
    make_run(tmp_path, "x")
    make_run(tmp_path / "outputs", "a/b")
    with pytest.raises(RunNotFoundError, match=r"There is no run"):
        find_run_folder(run_id, tmp_path)
