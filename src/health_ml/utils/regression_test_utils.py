"""The import path under which hi-ml offers the comparison with stored results."""

from health_ml.training.regression import (
    CONTENTS_MISMATCH,
    CSV_SUFFIX,
    FILE_FORMAT_ERROR,
    MISSING_FILE,
    REGRESSION_TEST_AZUREML_FOLDER,
    REGRESSION_TEST_AZUREML_PARENT_FOLDER,
    REGRESSION_TEST_METRICS_FILENAME,
    REGRESSION_TEST_OUTPUT_FOLDER,
    TEXT_FILE_SUFFIXES,
    compare_files,
    compare_folder_contents,
    compare_folders_and_run_outputs,
    compare_metrics_dictionaries,
    compare_metrics_files,
)

__all__ = [
    "CONTENTS_MISMATCH",
    "CSV_SUFFIX",
    "FILE_FORMAT_ERROR",
    "MISSING_FILE",
    "REGRESSION_TEST_AZUREML_FOLDER",
    "REGRESSION_TEST_AZUREML_PARENT_FOLDER",
    "REGRESSION_TEST_METRICS_FILENAME",
    "REGRESSION_TEST_OUTPUT_FOLDER",
    "TEXT_FILE_SUFFIXES",
    "compare_files",
    "compare_folder_contents",
    "compare_folders_and_run_outputs",
    "compare_metrics_dictionaries",
    "compare_metrics_files",
]
