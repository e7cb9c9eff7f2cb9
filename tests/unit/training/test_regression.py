"""What counts as equal when the outputs of a run are compared with stored ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from health_ml.errors import RegressionTestError
from health_ml.training.regression import (
    CONTENTS_MISMATCH,
    FILE_FORMAT_ERROR,
    compare_files,
    compare_folder_contents,
    compare_folders_and_run_outputs,
    compare_metrics_dictionaries,
    compare_metrics_files,
    write_regression_metrics,
)


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    ("name", "expected", "actual", "tolerance", "message"),
    [
        ("a.csv", "x,y\n1,2.0\n", "x,y\r\n1,2.0\r\n", 0.0, ""),
        ("a.csv", "x,y\n1,2.0\n", "x,y\n1,2.00001\n", 0.0, CONTENTS_MISMATCH),
        ("a.csv", "x,y\n1,2.0\n", "x,y\n1,2.00001\n", 1e-4, ""),
        ("a.csv", "x,y\n1,2.0\n", "x,y\n1,2.1\n", 1e-4, CONTENTS_MISMATCH),
        ("a.csv", "x\n0.0\n", "x\n1e-15\n", 0.0, CONTENTS_MISMATCH),
        ("a.csv", "x\n0.0\n", "x\n1e-15\n", 1e-3, ""),
        ("a.csv", "x\n1\n", "x\n1.0\n", 1e-3, ""),
        ("a.csv", "x\nyes\n", "x\nno\n", 1e-3, CONTENTS_MISMATCH),
        ("a.csv", "x\n1\n", "x\n1\n2\n", 1e-3, CONTENTS_MISMATCH),
        ("a.csv", "x\n1\n", "y\n1\n", 1e-3, CONTENTS_MISMATCH),
        ("a.csv", "x\n1\n", "", 0.0, FILE_FORMAT_ERROR),
        ("a.csv", "", "x\n1\n", 0.0, FILE_FORMAT_ERROR),
        ("a.csv", "x\n1\n", b"x\n\xff\xfe\n", 0.0, FILE_FORMAT_ERROR),
        ("a.csv", "", "", 0.0, ""),
        ("a.txt", "one\ntwo\n", "one\r\ntwo", 0.0, ""),
        ("a.md", "one\n", "two\n", 0.0, CONTENTS_MISMATCH),
        ("a.json", "{}", "{} ", 0.0, CONTENTS_MISMATCH),
        ("a.html", b"\xff\n", b"\xff\r\n", 0.0, ""),
        ("a.bin", b"1\n", b"1\r\n", 0.0, CONTENTS_MISMATCH),
        ("a.bin", b"\0\1", b"\0\1", 0.0, ""),
        ("regression_metrics.json", '{"a": 1.0}', '{"a": 1.0001, "b": 2}', 1e-3, ""),
        ("regression_metrics.json", '{"a": 1.0}', '{"a": 1.0001, "b": 2}', 0.0, CONTENTS_MISMATCH),
    ],
)
def test_each_kind_of_file(
    name: str, expected: str | bytes, actual: str | bytes, tolerance: float, message: str, tmp_path: Path
) -> None:
    files = write(tmp_path / "expected" / name, expected), write(tmp_path / "actual" / name, actual)
    assert compare_files(*files, csv_relative_tolerance=tolerance) == message


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (1.0, 1.000001),
        (1, 1.0),
        (0.0, 1e-15),
        (1e-15, 0.0),
        ("text", "text"),
        (float("nan"), float("nan")),
        (float("inf"), float("inf")),
        ([1.0, "a", [2]], [1.0, "a", [2.0]]),
        (True, True),
        (None, None),
    ],
)
def test_metrics_that_match(expected: Any, actual: Any) -> None:
    assert compare_metrics_dictionaries({"m": expected}, {"m": actual, "more": 1.0}) == ""


@pytest.mark.parametrize(
    ("expected", "actual", "detail"),
    [
        (1.0, 1.1, "Expected 1.0 but got 1.1 (allowed tolerance 1e-05)"),
        (0.0, 1e-3, "Expected 0.0 but got 0.001"),
        (1.0, float("nan"), "Expected 1.0 but got nan"),
        ("text", "other", "Expected 'text' but got 'other'"),
        ([1.0, 2.0], [1.0], "Expected list of length 2 but got 1"),
        ([1.0, 2.0], [1.0, 3.0], "Index 1: Expected 2.0 but got 3.0"),
        (1.0, "1.0", "Actual value has type str but we expected float."),
    ],
)
def test_metrics_that_differ(expected: Any, actual: Any, detail: str, caplog: pytest.LogCaptureFixture) -> None:
    message = compare_metrics_dictionaries({"m": expected, "ok": 1}, {"m": actual, "ok": 1})
    assert message == "Mismatch for 1 out of 2 metrics"
    assert f"Metric 'm': {detail}" in caplog.text


def test_tolerance_of_zero_is_exact() -> None:
    assert compare_metrics_dictionaries({"m": 0.0}, {"m": 1e-15}, tolerance=0.0) != ""
    assert compare_metrics_dictionaries({"m": 0.25}, {"m": 0.25}, tolerance=0.0) == ""


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        ({"0": {"a": 1.0}, "1": {"a": 2.0}}, {"0": {"a": 1.0}, "1": {"a": 2.0}}, ""),
        ({"0": {"a": 1.0}, "1": {"a": 2.0}}, {"0": {"a": 1.5}}, "Mismatches for 2 child runs"),
        ({"a": 1.0}, {"b": 1.0}, "Mismatch for 1 out of 1 metrics"),
        ({"a": 1.0}, {"0": {"a": 1.0}}, "Expected a flat dictionary as the actual metrics, but got a nested"),
        ({"0": {"a": 1.0}}, {"a": 1.0}, "Expected a nested dictionary as the actual metrics, but got a flat"),
        ({"0": {"a": 1.0}, "b": 1.0}, {"a": 1.0}, "either metrics or one dictionary of metrics per child run"),
        ([1.0], {"a": 1.0}, "to contain a JSON dictionary, but got list"),
        ({}, {"a": 1.0}, ""),
    ],
)
def test_metrics_files(expected: Any, actual: Any, message: str, tmp_path: Path) -> None:
    files = write(tmp_path / "e.json", json.dumps(expected)), write(tmp_path / "a.json", json.dumps(actual))
    result = compare_metrics_files(*files)
    assert message in result
    assert bool(message) == bool(result)


def test_metrics_file_that_cannot_be_read(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.json", "{}"), write(tmp_path / "bad.json", "{")
    assert "Error comparing metrics files" in compare_metrics_files(good, bad)
    assert "Error comparing metrics files" in compare_metrics_files(good, tmp_path / "missing.json")


class StoredFiles:
    """The files of a run, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> Iterable[str]:
        return [file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file()]

    def download(self, name: str, target: Path) -> None:
        shutil.copy(self.folder / name, target)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    expected, actual = tmp_path / "expected", tmp_path / "actual"
    for name, content in (("same.txt", "1"), ("deep/er/same.txt", "1"), ("differs.txt", "1"), ("gone.txt", "1")):
        write(expected / name, content)
        if name != "gone.txt":
            write(actual / name, "2" if name == "differs.txt" else content)
    write(expected / "table.csv", "x\n1\n")
    write(actual / "table.csv", "")
    write(actual / "more.txt", "not expected")
    return expected, actual


ISSUES = ["Contents mismatch: differs.txt", "Missing: gone.txt", "File format error: table.csv"]


def test_folder_against_folder_and_run(folders: tuple[Path, Path]) -> None:
    expected, actual = folders
    assert compare_folder_contents(expected, actual) == ISSUES
    assert compare_folder_contents(expected, run=StoredFiles(actual)) == ISSUES
    assert compare_folder_contents(actual, actual) == []
    with pytest.raises(ValueError, match="'run' or 'actual_folder' must be provided"):
        compare_folder_contents(expected)


def test_folder_in_place_of_a_file_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "expected" / "name.txt", "1")
    (tmp_path / "actual" / "name.txt").mkdir(parents=True)
    assert compare_folder_contents(tmp_path / "expected", tmp_path / "actual") == ["Missing: name.txt"]


def test_all_issues_are_in_one_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    expected, actual = folders
    for name in ("OUTPUT", "AZUREML_OUTPUT", "AZUREML_PARENT_OUTPUT"):
        shutil.copytree(expected, tmp_path / "stored" / name)
    with pytest.raises(RegressionTestError, match="Some expected files were missing") as caught:
        compare_folders_and_run_outputs(tmp_path / "stored", actual, run=StoredFiles(actual))
    assert caught.value.message.splitlines()[1:] == [
        "Issues in run output files:",
        *ISSUES,
        "Issues in AzureML outputs in present run:",
        *ISSUES,
    ]


def test_matching_outputs_pass(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, actual = folders
    shutil.copytree(actual, tmp_path / "stored" / "OUTPUT")
    compare_folders_and_run_outputs(tmp_path / "stored", actual)
    write(actual / "same.txt", "changed")
    with pytest.raises(ValueError, match=r"Contents mismatch: same\.txt"):
        compare_folders_and_run_outputs(tmp_path / "stored", actual)


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegressionTestError, match="Folder with expected files does not exist"):
        compare_folders_and_run_outputs(tmp_path / "missing", tmp_path)
    with pytest.raises(RegressionTestError, match=r"nothing to compare: .* Put the files .*OUTPUT"):
        compare_folders_and_run_outputs(tmp_path, tmp_path)


def test_metrics_to_compare_are_written(tmp_path: Path) -> None:
    file = write_regression_metrics("a/b, c", {"a/b": 0.5, "c": 1.0, "d": 2.0}, tmp_path)
    assert json.loads(file.read_text()) == {"a/b": 0.5, "c": 1.0}
    assert compare_files(file, file) == ""


def test_metrics_to_compare_that_do_not_exist_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(RegressionTestError, match=r"does not have: b, c\. It has a\."):
        write_regression_metrics("a,b,c", {"a": 1.0}, tmp_path)
    assert list(tmp_path.iterdir()) == []
