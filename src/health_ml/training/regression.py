"""Compares what a run wrote with files stored from an earlier one: the check behind ``--regression_test_folder``."""

from __future__ import annotations

import io
import json
import logging
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from health_ml.errors import RegressionTestError

logger = logging.getLogger(__name__)

REGRESSION_TEST_OUTPUT_FOLDER = "OUTPUT"
REGRESSION_TEST_AZUREML_FOLDER = "AZUREML_OUTPUT"
REGRESSION_TEST_AZUREML_PARENT_FOLDER = "AZUREML_PARENT_OUTPUT"
REGRESSION_TEST_METRICS_FILENAME = "regression_metrics.json"

CONTENTS_MISMATCH = "Contents mismatch"
FILE_FORMAT_ERROR = "File format error"
MISSING_FILE = "Missing"

CSV_SUFFIX = ".csv"
TEXT_FILE_SUFFIXES = [".txt", ".json", ".html", ".md"]

_NEAR_ZERO = 1e-8
"""Absolute difference that counts as none where a relative tolerance is given: no relative one accepts 1e-15 for 0."""
_MAX_DETAILS = 5


class RunFiles(Protocol):
    """The files that a tracking service has stored for a run."""

    def names(self) -> Iterable[str]:
        """Returns the names of all files, with forward slashes."""

    def download(self, name: str, target: Path) -> None:
        """Writes one of the files to a path whose folder exists."""


def compare_files(expected: Path, actual: Path, csv_relative_tolerance: float = 0.0) -> str:
    """Returns an empty string if two files match, else what kind of difference there is.

    The suffix of the expected file says how they are compared: CSV files as tables, text files (.txt, .json, .html,
    .md) line by line whatever ends the lines, metrics files as numbers, all others byte by byte. Details are logged.

    :param expected: The file with the expected contents.
    :param actual: The file to check.
    :param csv_relative_tolerance: Largest relative difference of numbers in CSV and metrics files; 0 accepts none.
    """
    expected_bytes, actual_bytes = expected.read_bytes(), actual.read_bytes()
    if expected_bytes == actual_bytes:
        return ""
    if expected.name == REGRESSION_TEST_METRICS_FILENAME:
        return CONTENTS_MISMATCH if compare_metrics_files(expected, actual, csv_relative_tolerance) else ""
    if expected.suffix == CSV_SUFFIX:
        return _compare_tables(expected_bytes, actual_bytes, csv_relative_tolerance)
    if expected.suffix in TEXT_FILE_SUFFIXES:
        return _compare_lines(expected_bytes, actual_bytes)
    logger.warning("Expected %d bytes, actual %d bytes", len(expected_bytes), len(actual_bytes))
    return CONTENTS_MISMATCH


def _compare_tables(expected: bytes, actual: bytes, tolerance: float) -> str:
    import pandas as pd  # a CSV file is rare, and pandas takes time to load

    tables = []
    for what, content in (("Expected", expected), ("Actual", actual)):
        try:
            tables.append(pd.read_csv(io.BytesIO(content)))
        except (ValueError, UnicodeError) as error:  # the errors of the CSV parser derive from ValueError
            logger.warning("%s file can't be read as CSV: %s", what, error)
            return FILE_FORMAT_ERROR
    try:
        pd.testing.assert_frame_equal(
            tables[1],
            tables[0],
            check_exact=tolerance == 0,
            check_dtype=tolerance == 0,
            rtol=tolerance,
            atol=_NEAR_ZERO,
        )
    except AssertionError as error:
        logger.warning("%s", error)
        return CONTENTS_MISMATCH
    return ""


def _compare_lines(expected: bytes, actual: bytes) -> str:
    lines = [content.decode("utf-8", errors="surrogateescape").splitlines() for content in (expected, actual)]
    if lines[0] == lines[1]:
        return ""
    for what, part in zip(("Expected", "Actual"), lines, strict=True):
        shown = "\n".join(part[:_MAX_DETAILS])
        logger.warning("%s %d lines, first %d of those:\n%s", what, len(part), min(len(part), _MAX_DETAILS), shown)
    return CONTENTS_MISMATCH


# --- metrics ----------------------------------------------------------------------------------------------------------


def compare_metrics_files(expected: Path, actual: Path, tolerance: float = 1e-5) -> str:
    """Returns an empty string if the metrics in two JSON files match, else a summary of the differences.

    Both hold a dictionary of metrics, or one such dictionary per child of a cross-validation.

    :param expected: The file with the expected metrics.
    :param actual: The file to check; metrics that are not expected are ignored.
    :param tolerance: Largest relative difference.
    """
    try:
        expected_metrics, is_expected_nested = _load_metrics(expected)
        actual_metrics, is_actual_nested = _load_metrics(actual)
    except (OSError, ValueError) as error:
        return _logged(f"Error comparing metrics files: {error}")
    if is_expected_nested != is_actual_nested:
        shapes = ("a nested", "a flat") if is_expected_nested else ("a flat", "a nested")
        return _logged(f"Expected {shapes[0]} dictionary as the actual metrics, but got {shapes[1]} dictionary")
    if not is_expected_nested:
        return compare_metrics_dictionaries(expected_metrics, actual_metrics, tolerance)
    mismatches = 0
    for child, metrics in expected_metrics.items():
        message = "Missing from the actual metrics"
        if child in actual_metrics:
            message = compare_metrics_dictionaries(metrics, actual_metrics[child], tolerance)
        if message:
            logger.warning("Child run '%s': %s", child, message)
            mismatches += 1
    return f"Mismatches for {mismatches} child runs" if mismatches else ""


def write_regression_metrics(names: str, metrics: Mapping[str, float], outputs: Path) -> Path:
    """Returns the file ``regression_metrics.json`` after writing the named metrics of a run into it.

    Stored below the ``OUTPUT`` folder of the expected results, it is what later runs are compared with.

    :param names: Comma-separated names of metrics.
    :param metrics: The metrics of the run, by name.
    :param outputs: The outputs folder of the run.
    :raises RegressionTestError: If the run has no metrics of these names, naming all of them.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    missing = [name for name in wanted if name not in metrics]
    if missing:
        raise RegressionTestError(
            f"--regression_metrics names metrics that this run does not have: {', '.join(missing)}.",
            f"It has {', '.join(sorted(metrics)) or 'none'}.",
        )
    file = outputs / REGRESSION_TEST_METRICS_FILENAME
    text = json.dumps({name: metrics[name] for name in wanted}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
    return file


def compare_metrics_dictionaries(
    expected: Mapping[str, Any], actual: Mapping[str, Any], tolerance: float = 1e-5
) -> str:
    """Returns an empty string if all expected metrics are there and match, else how many do not.

    Numbers match within the tolerance, whether they are whole or not; NaN matches NaN; text has to be equal; lists
    match item by item.

    :param expected: Names and values of the expected metrics.
    :param actual: Names and values to check; metrics that are not expected are ignored.
    :param tolerance: Largest relative difference. If it is above 0, numbers as small as 1e-8 match zero.
    """
    mismatches = 0
    for name, value in expected.items():
        if name in actual:
            messages = _differences(value, actual[name], tolerance)
        else:
            messages = ["No data found in actual metrics."]
        for message in messages[:_MAX_DETAILS]:
            logger.warning("Metric '%s': %s", name, message)
        mismatches += bool(messages)
    return f"Mismatch for {mismatches} out of {len(expected)} metrics" if mismatches else ""


def _differences(expected: Any, actual: Any, tolerance: float) -> list[str]:
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"Expected list of length {len(expected)} but got {len(actual)}"]
        pairs = enumerate(zip(expected, actual, strict=True))
        return [f"Index {index}: {message}" for index, (e, a) in pairs for message in _differences(e, a, tolerance)]
    if _is_number(expected) and _is_number(actual):
        absolute = _NEAR_ZERO if tolerance > 0 else 0.0
        both_nan = math.isnan(expected) and math.isnan(actual)
        if both_nan or math.isclose(expected, actual, rel_tol=tolerance, abs_tol=absolute):
            return []
        return [f"Expected {expected} but got {actual} (allowed tolerance {tolerance})"]
    if type(expected) is type(actual):
        return [] if expected == actual else [f"Expected {expected!r} but got {actual!r}"]
    return [f"Actual value has type {type(actual).__name__} but we expected {type(expected).__name__}."]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _load_metrics(file: Path) -> tuple[dict[str, Any], bool]:
    """Returns the dictionary in a JSON file, and whether it has one dictionary per child run.

    :raises ValueError: If the file holds something else.
    """
    metrics = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metrics, dict):
        raise ValueError(f"Expected metrics file {file} to contain a JSON dictionary, but got {type(metrics).__name__}")
    nested = [isinstance(value, dict) for value in metrics.values()]
    if any(nested) and not all(nested):
        raise ValueError(f"{file} has to hold either metrics or one dictionary of metrics per child run, not both")
    return metrics, any(nested)


def _logged(message: str) -> str:
    logger.warning("%s", message)
    return message


# --- folders ----------------------------------------------------------------------------------------------------------


def compare_folder_contents(
    expected_folder: Path,
    actual_folder: Path | None = None,
    run: RunFiles | None = None,
    csv_relative_tolerance: float = 0.0,
) -> list[str]:
    """Returns one message for each expected file that is missing or different, like ``Missing: a/b.txt``.

    :param expected_folder: Each file below it has to exist under the same relative path; more files may exist.
    :param actual_folder: Folder to check.
    :param run: Files of a run in a tracking service, checked if no folder is given.
    :param csv_relative_tolerance: Largest relative difference of numbers in CSV and metrics files.
    :raises ValueError: If neither a folder nor a run is given.
    """
    names = sorted(
        file.relative_to(expected_folder).as_posix() for file in expected_folder.rglob("*") if file.is_file()
    )
    if actual_folder is not None:
        return _compare_all(names, expected_folder, actual_folder, csv_relative_tolerance)
    if run is None:
        raise ValueError("Either of the two arguments 'run' or 'actual_folder' must be provided")
    with tempfile.TemporaryDirectory() as folder:
        for name in set(names).intersection(run.names()):
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            run.download(name, target)
        return _compare_all(names, expected_folder, Path(folder), csv_relative_tolerance)


def _compare_all(names: list[str], expected_folder: Path, actual_folder: Path, tolerance: float) -> list[str]:
    messages = []
    for name in names:
        actual = actual_folder / name
        message = compare_files(expected_folder / name, actual, tolerance) if actual.is_file() else MISSING_FILE
        if message:
            messages.append(f"{message}: {name}")
            logger.warning("File %s: %s", name, message)
        else:
            logger.info("File %s: OK", name)
    return messages


def check_expected_folder(expected: Path) -> None:
    """Checks that a folder of expected files has something to compare.

    :raises RegressionTestError: If it has not.
    """
    names = (REGRESSION_TEST_OUTPUT_FOLDER, REGRESSION_TEST_AZUREML_FOLDER, REGRESSION_TEST_AZUREML_PARENT_FOLDER)
    if not any(path.is_file() for name in names for path in (expected / name).rglob("*")):
        raise RegressionTestError(
            f"The folder with expected files has nothing to compare: {expected}.",
            f"Put the files that the outputs folder should hold into {expected / REGRESSION_TEST_OUTPUT_FOLDER}.",
        )


def compare_folders_and_run_outputs(
    expected: Path,
    actual: Path,
    csv_relative_tolerance: float = 0.0,
    *,
    run: RunFiles | None = None,
    parent_run: RunFiles | None = None,
) -> None:
    """Checks the outputs of a run against a folder of expected files.

    Below the expected folder, ``OUTPUT`` is compared with the outputs folder, ``AZUREML_OUTPUT`` with the files that
    AzureML has stored for the run, and ``AZUREML_PARENT_OUTPUT`` with those of its parent run.

    :param expected: Folder with the expected files.
    :param actual: Outputs folder of the run.
    :param csv_relative_tolerance: Largest relative difference of numbers in CSV and metrics files.
    :param run: Files of the run in AzureML; outside AzureML they are not compared.
    :param parent_run: Files of its parent run in AzureML.
    :raises RegressionTestError: With every file that is missing or different; also if there is nothing to compare.
    """
    if not expected.is_dir():
        raise RegressionTestError(
            f"Folder with expected files does not exist: {expected}.", "Check --regression_test_folder."
        )
    parts: list[tuple[str, str, Path | None, RunFiles | None]] = [
        (REGRESSION_TEST_OUTPUT_FOLDER, "run output files", actual, None),
        (REGRESSION_TEST_AZUREML_FOLDER, "AzureML outputs in present run", None, run),
        (REGRESSION_TEST_AZUREML_PARENT_FOLDER, "AzureML outputs in parent run", None, parent_run),
    ]
    check_expected_folder(expected)
    present = [part for part in parts if (expected / part[0]).is_dir()]
    issues: list[str] = []
    for subfolder, what, actual_folder, run_files in present:
        if actual_folder is None and run_files is None:
            logger.warning("No AzureML run to compare %s against. Skipping.", expected / subfolder)
            continue
        messages = compare_folder_contents(expected / subfolder, actual_folder, run_files, csv_relative_tolerance)
        issues += [f"Issues in {what}:", *messages] if messages else []
    if issues:
        raise RegressionTestError(
            "\n".join(["Some expected files were missing or did not have the expected contents:", *issues]) + "\n",
            "The log has the details. If the new results are right, store them in the folder.",
        )
